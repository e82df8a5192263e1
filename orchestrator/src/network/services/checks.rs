//! Questions to those behind services, asked again and again by tasks of their own: whether they can serve. The
//! tasks end with this.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{MissedTickBehavior, interval, timeout};

use crate::model::HealthCheck;
use crate::site::{http, on_a_line, tcp};

/// Who is asked for whom: a service's uid, a workload's, and the workload's address.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Asked {
    /// The service.
    pub service: String,
    /// The workload.
    pub workload: String,
    /// Where.
    pub address: Ipv4Addr,
}

/// A question that is to be asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wish {
    /// How.
    pub check: HealthCheck,
    /// What was known of it before anything was asked.
    pub well: bool,
}

/// What the questions have come to. No reason is that it can serve.
pub type Answers = HashMap<Asked, Option<String>>;

/// All questions.
pub struct Checks {
    tasks: JoinSet<()>,
    running: HashMap<Asked, (HealthCheck, AbortHandle)>,
    answers: Arc<Mutex<Answers>>,
    bell: Arc<Notify>,
}

/// What is thought of one who is asked.
#[derive(Debug)]
struct Tally {
    well: bool,
    /// Answers in a row that say otherwise.
    against: u32,
}

impl Tally {
    /// Counts an answer; whether it changes what is thought.
    fn count(&mut self, good: bool, check: &HealthCheck) -> bool {
        if good == self.well {
            self.against = 0;
            return false;
        }
        self.against += 1;
        let needed = match good {
            true => check.successes,
            false => check.failures,
        };
        let changes = self.against >= needed;
        if changes {
            (self.well, self.against) = (good, 0);
        }
        changes
    }
}

impl Checks {
    /// None yet. The bell is rung when an answer changes something.
    pub fn new(bell: Arc<Notify>) -> Checks {
        Checks {
            tasks: JoinSet::new(),
            running: HashMap::new(),
            answers: Arc::default(),
            bell,
        }
    }

    /// What they have come to.
    pub fn answers(&self) -> Answers {
        self.answers.lock().clone()
    }

    /// Asks these from now on, and no others. What is asked already goes on.
    pub fn set(&mut self, wishes: &HashMap<Asked, Wish>) {
        let answers = &self.answers;
        self.running.retain(|asked, (check, task)| {
            let stays = wishes.get(asked).is_some_and(|wish| wish.check == *check);
            if !stays {
                task.abort();
                answers.lock().remove(asked);
            }
            stays
        });
        for (asked, wish) in wishes {
            if !self.running.contains_key(asked) {
                let why = (!wish.well).then(|| "it was not asked yet".to_owned());
                self.answers.lock().insert(asked.clone(), why);
                let (answers, bell) = (self.answers.clone(), self.bell.clone());
                let asking = ask(asked.clone(), wish.clone(), answers, bell);
                let task = self.tasks.spawn(asking);
                let entry = (wish.check.clone(), task);
                self.running.insert(asked.clone(), entry);
            }
        }
        // Those that ended are forgotten.
        while self.tasks.try_join_next().is_some() {}
    }
}

/// Asks one for ever.
async fn ask(asked: Asked, wish: Wish, answers: Arc<Mutex<Answers>>, bell: Arc<Notify>) {
    let check = &wish.check;
    let limit = Duration::from_millis(check.timeout_millis.into());
    let mut tally = Tally {
        well: wish.well,
        against: 0,
    };
    let mut told = false;
    let mut ticks = interval(Duration::from_millis(check.interval_millis.max(1).into()));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let answer = timeout(limit, once(asked.address, check)).await;
        let answer = answer
            .unwrap_or_else(|_| Err(format!("no answer within {} ms", limit.as_millis())))
            .map_err(|why| on_a_line(&why));
        let changes = tally.count(answer.is_ok(), check);
        let why = match (changes, answer) {
            (true, answer) => answer.err(),
            // Why it never could is told, too.
            (false, Err(why)) if !tally.well && !told => Some(why),
            _ => continue,
        };
        told = true;
        // It is forgotten together with this task, which is ended before that.
        if let Some(answer) = answers.lock().get_mut(&asked) {
            *answer = why;
        }
        bell.notify_one();
    }
}

async fn once(address: Ipv4Addr, check: &HealthCheck) -> Result<(), String> {
    let at = |port| SocketAddr::new(IpAddr::V4(address), port);
    match (&check.http_get, &check.tcp_socket) {
        (Some(action), _) => http(at(action.port), &action.path).await,
        (None, Some(action)) => tcp(at(action.port)).await.map(drop),
        (None, None) => Err("nothing is asked".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::TcpAction;

    #[test]
    fn some_answers_in_a_row_count() {
        let check = HealthCheck {
            successes: 2,
            ..HealthCheck::default()
        };
        let mut tally = Tally {
            well: true,
            against: 0,
        };
        let heard = [false, true, false, false, true, false, true, true];
        let changes = heard.map(|good| tally.count(good, &check));
        assert_eq!(
            changes,
            [false, false, false, true, false, false, false, true]
        );
    }

    #[tokio::test]
    async fn who_goes_is_noticed_and_who_is_not_asked_any_more_is_forgotten() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await;
        let listener = listener.expect("a port");
        let port = listener.local_addr().expect("an address").port();
        let bell = Arc::new(Notify::new());
        let mut checks = Checks::new(bell.clone());
        let asked = Asked {
            service: "web".into(),
            workload: "one".into(),
            address: Ipv4Addr::LOCALHOST,
        };
        let check = HealthCheck {
            tcp_socket: Some(TcpAction { port }),
            timeout_millis: 10_000,
            ..HealthCheck::default()
        };
        let wish = Wish { check, well: false };
        let wishes = HashMap::from([(asked.clone(), wish)]);
        checks.set(&wishes);
        assert!(checks.answers()[&asked].is_some());
        bell.notified().await;
        assert_eq!(checks.answers()[&asked], None);
        // It goes on where it is.
        checks.set(&wishes);
        assert_eq!(checks.answers()[&asked], None);
        drop(listener);
        bell.notified().await;
        let why = checks.answers()[&asked].clone().expect("it is gone");
        assert!(why.contains("takes no connection"), "{why}");
        checks.set(&HashMap::new());
        assert!(checks.answers().is_empty());
    }
}
