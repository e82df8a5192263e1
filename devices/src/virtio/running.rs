//! The device's end of a queue that runs on a worker: how it is stopped and handed back.

use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use crate::worker::{Source, SourceId, WorkerHandle};

/// A source's way home: it is sent whole to whoever stops it.
pub(super) struct Return<S>(SyncSender<Box<S>>);

impl<S> Clone for Return<S> {
    fn clone(&self) -> Self {
        Return(self.0.clone())
    }
}

impl<S> Return<S> {
    pub fn give(&self, source: Box<S>) {
        // Fails only if the device was dropped, and then nobody wants the state.
        let _ = self.0.send(source);
    }
}

/// Gives a source up whose worker broke down: whoever stops it learns that it is gone. `home` was
/// taken out of it.
pub(super) fn abandon<S>(source: Box<S>, home: Return<S>, in_flight: bool) {
    if in_flight {
        // The kernel may still write to what it was given.
        std::mem::forget(source);
    } else {
        drop(source);
    }
    drop(home);
}

/// A source that was attached to a worker.
pub(super) struct Running<S> {
    worker: WorkerHandle,
    id: SourceId,
    back: Receiver<Box<S>>,
}

impl<S: Source + 'static> Running<S> {
    /// Builds a source around its way home and attaches it.
    pub fn attach(worker: WorkerHandle, make: impl FnOnce(Return<S>) -> S) -> Running<S> {
        let (give, back) = sync_channel(1);
        let id = worker.attach(Box::new(make(Return(give))));
        Running { worker, id, back }
    }

    /// Takes the source back, after it has drained. None if its worker is gone.
    pub fn stop(self) -> Option<Box<S>> {
        self.worker.detach(self.id);
        self.back.recv().ok()
    }
}
