# The guest's first process, run by busybox's shell in the initramfs: makes the root directory and goes there.
# /run is the harness's directory of this run: layers (9p tags that go over the root, topmost first), start.sh, command.
ninep=trans=virtio,version=9p2000.L,msize=262144,ro,cache=loose
set -e
mkdir -p /layers /top /root
mount -t tmpfs -o mode=755 top /top
mkdir /top/upper /top/work
lower=
for tag in $(cat /run/layers) host; do
    mkdir "/layers/$tag"
    mount -t 9p -o "$ninep" "$tag" "/layers/$tag"
    lower=$lower${lower:+:}/layers/$tag
done
mount -t overlay -o "lowerdir=$lower,upperdir=/top/upper,workdir=/top/work" root /root

for directory in dev dev/pts dev/shm proc sys sys/fs/cgroup tmp run var/tmp var/lib; do
    case $directory in
        dev) set -- devtmpfs mode=755 ;;
        dev/pts) set -- devpts mode=620,gid=5,ptmxmode=666 ;;
        dev/shm | tmp | var/tmp) set -- tmpfs mode=1777 ;;
        run | var/lib) set -- tmpfs mode=755 ;;
        proc) set -- proc rw ;;
        sys) set -- sysfs rw ;;
        sys/fs/cgroup) set -- cgroup2 rw ;;
    esac
    mkdir -p "/root/$directory"
    mount -t "$1" -o "$2" "$1" "/root/$directory"
done
ln -sf /proc/self/fd /root/dev/fd
mkdir /root/run/guest
mount -o move /run /root/run/guest
# What is below a tmpfs now (a checkout in /tmp, say) is put back.
repository=$(cat /root/run/guest/repository)
if [ ! -e "/root$repository" ]; then
    mkdir -p "/root$repository" /again
    mount -t overlay -o "lowerdir=$lower,upperdir=/top/upper,workdir=/top/work" root /again
    mount -o bind "/again$repository" "/root$repository"
fi
exec switch_root /root /bin/sh /run/guest/start.sh
