//! Objects are deleted: at once, or when those have cleaned up who have to; and with what is theirs, or without.

use serde::Deserialize;

use super::error::ApiError;
use super::objects::{Objects, Part};
use crate::model::{FOREGROUND, Kind, Namespace, ORPHAN, Object, Timestamp, kind_of};

/// What becomes of an object's dependents when it is deleted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
pub enum Propagation {
    /// They go after it.
    #[default]
    Background,
    /// They go before it.
    Foreground,
    /// They stay, as nobody's.
    Orphan,
}

impl Propagation {
    /// Who looks after the dependents before the object goes.
    fn finalizer(self) -> Option<&'static str> {
        match self {
            Propagation::Background => None,
            Propagation::Foreground => Some(FOREGROUND),
            Propagation::Orphan => Some(ORPHAN),
        }
    }
}

/// How an object is deleted.
#[derive(Debug, Clone, Default)]
pub struct Deletion<'a> {
    /// The uid that it must have; any if empty.
    pub uid: &'a str,
    /// How long it may take to stop, in seconds.
    pub grace: Option<u64>,
    /// What becomes of its dependents.
    pub propagation: Propagation,
    /// It is only looked whether it could be.
    pub dry_run: bool,
}

impl Objects {
    /// Says that it is to go, and its dependents after it; it is gone at once if nobody has to clean up before.
    ///
    /// # Errors
    /// If it is not there, or is another one than `uid`.
    pub async fn delete(
        &self,
        kind: &'static Kind,
        namespace: &str,
        name: &str,
        uid: &str,
        grace: Option<u64>,
        dry_run: bool,
    ) -> Result<Object, ApiError> {
        let deletion = Deletion {
            uid,
            grace,
            dry_run,
            ..Deletion::default()
        };
        self.delete_by(kind, namespace, name, &deletion).await
    }

    /// The same, with all that can be said about it.
    ///
    /// # Errors
    /// If it is not there, or is another one than the deletion's.
    pub async fn delete_by(
        &self,
        kind: &'static Kind,
        namespace: &str,
        name: &str,
        deletion: &Deletion<'_>,
    ) -> Result<Object, ApiError> {
        if kind == kind_of::<Namespace>() {
            self.is_empty(name).await?;
        }
        self.delete_if(kind, namespace, name, deletion, |_| true)
            .await
    }

    /// The same of an object that is as it is to be; it is left alone otherwise.
    ///
    /// # Errors
    /// If it is not there, or is another one than the deletion's.
    pub async fn delete_if(
        &self,
        kind: &'static Kind,
        namespace: &str,
        name: &str,
        deletion: &Deletion<'_>,
        judge: impl Fn(&Object) -> bool,
    ) -> Result<Object, ApiError> {
        let change = |old: &Object| {
            let mut new = old.clone();
            if !judge(old) {
                return Ok(new);
            }
            let meta = &mut new.meta;
            if !deletion.uid.is_empty() {
                deletion.uid.clone_into(&mut meta.uid);
            }
            if meta.deletion_timestamp.is_none() {
                meta.deletion_timestamp = Some(Timestamp::now());
                let finalizer = deletion.propagation.finalizer();
                meta.finalizers.extend(finalizer.map(str::to_owned));
            }
            meta.deletion_grace_period_seconds =
                deletion.grace.or(meta.deletion_grace_period_seconds);
            Ok(new)
        };
        let dry_run = deletion.dry_run;
        self.change(kind, namespace, name, Part::Spec, dry_run, change)
            .await
    }
}
