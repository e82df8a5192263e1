//! Runs tasks: futures that wait for a port's operations, or for each other.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};

use parking_lot::Mutex;

/// Tells the thread of a [`Tasks`] that one of them can go on, when that thread may be asleep.
pub type Bell = Box<dyn Fn() + Send + Sync>;

struct Ready {
    list: Mutex<Vec<u32>>,
    /// The owner is awake and looks at the list before it sleeps.
    attended: AtomicBool,
    bell: Bell,
}

struct TaskWaker {
    index: u32,
    ready: Arc<Ready>,
}

impl Wake for TaskWaker {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.ready.list.lock().push(self.index);
        if !self.ready.attended.load(Ordering::SeqCst) {
            (self.ready.bell)();
        }
    }
}

struct Slot<T> {
    task: Option<Pin<Box<dyn Future<Output = T> + Send>>>,
    waker: Waker,
    tag: u32,
}

/// A set of tasks with results of type `T`, each known by a tag of its owner's.
pub struct Tasks<T> {
    slots: Vec<Slot<T>>,
    free: Vec<u32>,
    ready: Arc<Ready>,
    batch: Vec<u32>,
    live: usize,
}

impl<T> Tasks<T> {
    /// No tasks yet. `bell` is rung when a task is woken outside of [`attend`](Self::attend) to
    /// [`leave`](Self::leave).
    pub fn new(bell: Bell) -> Tasks<T> {
        Tasks {
            slots: Vec::new(),
            free: Vec::new(),
            ready: Arc::new(Ready {
                list: Mutex::new(Vec::new()),
                attended: AtomicBool::new(false),
                bell,
            }),
            batch: Vec::new(),
            live: 0,
        }
    }

    /// Tasks that have not ended.
    pub fn live(&self) -> usize {
        self.live
    }

    /// Adds a task; it runs at the next [`run`](Self::run).
    pub fn spawn(&mut self, tag: u32, task: Pin<Box<dyn Future<Output = T> + Send>>) {
        let index = match self.free.pop() {
            Some(index) => index,
            None => {
                let index = self.slots.len() as u32;
                let ready = self.ready.clone();
                self.slots.push(Slot {
                    task: None,
                    waker: Arc::new(TaskWaker { index, ready }).into(),
                    tag: 0,
                });
                index
            }
        };
        let slot = &mut self.slots[index as usize];
        slot.task = Some(task);
        slot.tag = tag;
        self.live += 1;
        self.ready.list.lock().push(index);
    }

    /// The owner is awake: no bells from here on.
    pub fn attend(&self) {
        self.ready.attended.store(true, Ordering::SeqCst);
    }

    /// The owner is about to sleep. True if a task can go on, and it should not.
    pub fn leave(&self) -> bool {
        self.ready.attended.store(false, Ordering::SeqCst);
        !self.ready.list.lock().is_empty()
    }

    /// Runs every task that can go on until none can; `ended` gets the results.
    pub fn run(&mut self, mut ended: impl FnMut(u32, T)) {
        loop {
            std::mem::swap(&mut self.batch, &mut *self.ready.list.lock());
            if self.batch.is_empty() {
                return;
            }
            for index in std::mem::take(&mut self.batch) {
                let slot = &mut self.slots[index as usize];
                let Some(task) = &mut slot.task else { continue };
                if let Poll::Ready(result) =
                    task.as_mut().poll(&mut Context::from_waker(&slot.waker))
                {
                    slot.task = None;
                    self.free.push(index);
                    self.live -= 1;
                    ended(slot.tag, result);
                }
            }
        }
    }
}
