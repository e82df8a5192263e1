//! What another process has of a device that it serves, as a snapshot asks for it.

use super::VirtioPci;
use crate::virtio::Held;
use crate::virtio::vhost_user::VhostUserError;

impl VirtioPci {
    /// What another process has of the device; none if this one serves it.
    pub fn held(&self) -> Option<Held> {
        self.device.lock().held()
    }

    /// The state that another process has of the device, which is paused; none if there is no such state.
    ///
    /// # Errors
    /// When that process is gone, has not finished what the guest asked of it, or does not hand it over.
    pub fn save_held(&self) -> Result<Option<Vec<u8>>, VhostUserError> {
        self.device.lock().save_held()
    }

    /// Gives that state to another process, before the device runs.
    ///
    /// # Errors
    /// When that process does not take it, or when it should have state and none was kept.
    pub fn restore_held(&self, state: Option<&[u8]>) -> Result<(), VhostUserError> {
        self.device.lock().restore_held(state)
    }
}
