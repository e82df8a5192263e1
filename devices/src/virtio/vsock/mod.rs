//! virtio-vsock (virtio 1.3 §5.10): to come next.
