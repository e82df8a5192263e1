//! All that happens to objects of several kinds, in the one order in which it happened: for those who keep
//! books of them.

use std::collections::HashMap;

use futures_util::FutureExt;

use super::error::ApiError;
use super::objects::{Objects, decode};
use super::select::Selector;
use crate::model::{Kind, Object};
use crate::store::{Changed, Revision, Watch};

/// What became of an object.
#[derive(Debug)]
pub struct Turn {
    /// Its key.
    pub key: String,
    /// The commit.
    pub revision: Revision,
    /// The object; the last of it if it is gone.
    pub object: Object,
    /// It is gone.
    pub gone: bool,
}

/// What happens to objects of some kinds.
pub struct Follow {
    kinds: HashMap<String, &'static Kind>,
    watch: Box<dyn Watch>,
    reached: Revision,
    /// Before this commit what comes may be older than what was listed.
    known: Revision,
}

impl Objects {
    /// All objects of some kinds, and what happens to them. What changed while they were listed comes again.
    ///
    /// # Errors
    /// If the store fails.
    pub async fn follow(&self, kinds: &[&'static Kind]) -> Result<(Vec<Object>, Follow), ApiError> {
        let (mut all, mut from, mut known) = (Vec::new(), None, Revision(0));
        let selector = Selector::default();
        for kind in kinds {
            let list = self.list(kind, "", &selector, usize::MAX, "").await?;
            from.get_or_insert(list.revision);
            known = known.max(list.revision);
            all.extend(list.objects);
        }
        let from = from.unwrap_or(Revision(0));
        let by_name = |kind: &&'static Kind| (kind.resource(), *kind);
        let follow = Follow {
            kinds: kinds.iter().map(by_name).collect(),
            watch: self.watch_all(from).await?,
            reached: from,
            known,
        };
        Ok((all, follow))
    }
}

impl Follow {
    /// More of what happened, at least up to a commit that was made already; none when that was all.
    ///
    /// # Errors
    /// [`ApiError::Gone`] if it was too slow: begin again.
    pub async fn more(&mut self, upto: Revision) -> Result<Option<Vec<Turn>>, ApiError> {
        if self.reached < upto.max(self.known) {
            return self.next().await.map(Some);
        }
        // And what is there already.
        self.next().now_or_never().transpose()
    }

    /// Waits for what happens next. It may concern no object of these kinds.
    ///
    /// # Errors
    /// [`ApiError::Gone`] if it was too slow: begin again.
    pub async fn next(&mut self) -> Result<Vec<Turn>, ApiError> {
        let (changes, reached) = self.watch.next().await?;
        self.reached = self.reached.max(reached);
        let turns = changes.into_iter().map(|change| self.turn(change));
        turns.filter_map(Result::transpose).collect()
    }

    fn turn(&self, change: Changed) -> Result<Option<Turn>, ApiError> {
        let resource = change.key.split('/').next().unwrap_or_default();
        let Some(kind) = self.kinds.get(resource) else {
            return Ok(None);
        };
        let gone = change.value.is_none();
        let Some(bytes) = change.value.or(change.before) else {
            return Ok(None);
        };
        Ok(Some(Turn {
            object: decode(kind, &bytes, change.revision)?,
            key: change.key,
            revision: change.revision,
            gone,
        }))
    }
}
