#!/bin/sh
# The lab's first process, in its initramfs. The host's file system, read-only by 9p, becomes the root under a layer of
# memory that takes the writes; then xtask, seen through it, runs the command (tools/src/lab/inside.rs).
set -e
mount -t devtmpfs dev /dev
exec </dev/console >/dev/console 2>&1
mount -t proc proc /proc
mount -t sysfs sys /sys
for module in /modules/*; do
    insmod "$module"
done

share() { # tag, folder, further options
    mount -t 9p -o "trans=virtio,version=9p2000.L,msize=512000,$3" "$1" "$2"
}
mkdir /host /layer /control
share host /host ro,cache=loose
mount -t tmpfs -o size=75%,mode=755 layer /layer
mkdir /layer/upper /layer/work
mount -t overlay -o lowerdir=/host,upperdir=/layer/upper,workdir=/layer/work lab /root

# The two writable shares are at the same paths as on the host; so is everything else.
share control /control cache=none
IFS= read -r control </control/control-path
IFS= read -r out </control/out-path
IFS= read -r modules </control/modules-path
mount --move /control "/root$control"
share out "/root$out" cache=none

for folder in dev proc sys; do
    mount --move /$folder /root/$folder
done
mount -t tmpfs -o mode=755 run /root/run
mkdir -p /root/dev/pts /root/dev/shm /root/dev/hugepages /root/run/lock /root/run/lab/bin /root/run/lab/tmp
# Temporary files are on no overlay, so that there can be overlays of theirs.
mount -t tmpfs -o size=75%,mode=1777 tmp /root/run/lab/tmp
mount -t devpts -o mode=620,ptmxmode=666 devpts /root/dev/pts
mount -t tmpfs -o mode=1777 shm /root/dev/shm
mount -t hugetlbfs hugepages /root/dev/hugepages
mount -t cgroup2 cgroup2 /root/sys/fs/cgroup
mount -t debugfs debugfs /root/sys/kernel/debug
ln -sf /proc/self/fd /root/dev/fd
ln -sf /proc/self/fd/0 /root/dev/stdin
ln -sf /proc/self/fd/1 /root/dev/stdout
ln -sf /proc/self/fd/2 /root/dev/stderr

# The lab kernel's modules, and busybox's tools for whatever the host does not have, modprobe above all.
release=$(uname -r)
mkdir -p "/root/lib/modules/$release"
mount --bind "/root$modules/$release" "/root/lib/modules/$release"
cp -d /bin/* /root/run/lab/bin/
[ -e /root/sbin/modprobe ] || echo /run/lab/bin/modprobe >/root/proc/sys/kernel/modprobe
# Device files whose opening loads their driver; elsewhere udev makes them.
mkdir -p /root/dev/net /root/dev/vfio
node() { # file, major, minor
    [ -e "/root/dev/$1" ] || mknod "/root/dev/$1" c "$2" "$3"
}
node net/tun 10 200
node vfio/vfio 10 196
node vhost-net 10 238
node vhost-vsock 10 241
node fuse 10 229
node loop-control 10 237

hostname lab
ip link set lo up
# From here on everything the kernel says goes to the console's log, not only warnings: booting is over.
echo 7 >/root/proc/sys/kernel/printk
exec switch_root /root "$control/xtask" lab-inside --control "$control" --out "$out"
