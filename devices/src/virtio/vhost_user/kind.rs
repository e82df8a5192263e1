//! What kind of device a back end is: its type, what it may offer, its configuration space.

use super::VhostUserError;
use super::link::Link;
use crate::virtio::features;
use crate::virtio::net::Mac;

const BLK_SIZE_MAX: u64 = 1 << 1;
const BLK_SEG_MAX: u64 = 1 << 2;
/// VIRTIO_BLK_F_RO.
const BLK_READONLY: u64 = 1 << 5;
const BLK_MQ: u64 = 1 << 12;
const NET_MAC: u64 = 1 << 5;
const NET_CTRL_VQ: u64 = 1 << 17;
/// VIRTIO_NET_F_MTU: the configuration has no room for it.
const NET_MTU: u64 = 1 << 3;
/// Write-cache switch, secure erase and zones: the guest cannot write the configuration, nor read so far.
const BLK_UNSERVED: u64 = 1 << 11 | 1 << 16 | 1 << 17;
/// VIRTIO_NET_F_CTRL_RX and what else goes over the control queue (virtio 1.3 §5.1.3).
const NET_BY_CONTROL: u64 = NET_CTRL_VQ | 0x3f << 18 | 1 << 2;
/// Feature bits that are a device's own (virtio 1.3 §2.2).
const DEVICE_BITS: u64 = (1 << 24) - 1;
/// struct virtio_blk_config up to its discard and write-zeroes fields (virtio 1.3 §5.2.4).
const BLK_CONFIG: usize = 60;
/// Bytes of a file system's tag.
pub const TAG_LEN: usize = 36;

/// What a vhost-user device is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum VhostUserKind {
    /// A disk; its size is the back end's matter.
    Blk,
    /// A network device with this address.
    Net(Mac),
    /// A shared directory, which guests mount by this tag (at most 36 bytes).
    Fs(String),
}

impl VhostUserKind {
    /// virtio 1.3 §5.
    pub(super) fn device_type(&self) -> u16 {
        match self {
            VhostUserKind::Net(_) => 1,
            VhostUserKind::Blk => 2,
            VhostUserKind::Fs(_) => 26,
        }
    }

    /// Whether it is a disk that is offered for reading alone.
    pub(super) fn is_readonly(&self, features: u64) -> bool {
        *self == VhostUserKind::Blk && features & BLK_READONLY != 0
    }

    /// Whether its back end answers all that is available. A network's receive queue is never empty.
    pub(super) fn is_answered(&self) -> bool {
        !matches!(self, VhostUserKind::Net(_))
    }

    /// What is offered to the guest of what the back end offers.
    pub(super) fn features(&self, offered: u64, queues: u16) -> u64 {
        let common = offered & features::COMMON;
        let own = offered & DEVICE_BITS;
        common
            | match self {
                VhostUserKind::Blk if queues > 1 => own & !BLK_UNSERVED,
                VhostUserKind::Blk => own & !(BLK_MQ | BLK_UNSERVED),
                // There is no control queue.
                VhostUserKind::Net(_) => own & !(NET_BY_CONTROL | NET_MTU) | NET_MAC,
                // No notification queue.
                VhostUserKind::Fs(_) => 0,
            }
    }

    /// The configuration space, and what is still `offered` in its light.
    pub(super) fn config(
        &self,
        link: &mut Link,
        queues: u16,
        offered: u64,
    ) -> Result<(Vec<u8>, u64), VhostUserError> {
        let config = match self {
            VhostUserKind::Blk => {
                let mut config = link.config(BLK_CONFIG)?;
                config[34..36].copy_from_slice(&queues.to_le_bytes());
                // Some back ends offer limits of zero, by which no driver could go.
                let none = |at: usize| config[at..at + 4] == [0; 4];
                let limits = [(8, BLK_SIZE_MAX), (12, BLK_SEG_MAX)];
                let empty = limits.into_iter().filter(|(at, _)| none(*at));
                let offered = empty.fold(offered, |offered, (_, bit)| offered & !bit);
                return Ok((config, offered));
            }
            VhostUserKind::Net(mac) => {
                // Address, status (link up), one pair.
                let mut config = vec![0; 10];
                config[..6].copy_from_slice(mac);
                config[6] = 1;
                config[8] = 1;
                config
            }
            VhostUserKind::Fs(tag) => {
                let mut config = vec![0; TAG_LEN + 4];
                let n = tag.len().min(TAG_LEN);
                config[..n].copy_from_slice(&tag.as_bytes()[..n]);
                // All queues but the first, which is for urgent requests.
                let requests = u32::from(queues.saturating_sub(1));
                config[TAG_LEN..].copy_from_slice(&requests.to_le_bytes());
                config
            }
        };
        Ok((config, offered))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_back_end_lacks_is_not_offered_nor_what_only_we_could_do() {
        let all = u64::MAX;
        let fs = VhostUserKind::Fs("t".into());
        assert_eq!(fs.features(all, 2), features::COMMON);
        assert_eq!(fs.features(0, 2), 0);
        assert_eq!(VhostUserKind::Blk.features(all, 1) & BLK_MQ, 0);
        assert_eq!(VhostUserKind::Blk.features(all, 2) & BLK_MQ, BLK_MQ);
        let net = VhostUserKind::Net([2, 0, 0, 0, 0, 1]);
        assert_eq!(net.features(all, 2) & NET_CTRL_VQ, 0);
        assert_eq!(net.features(0, 2), NET_MAC);
    }
}
