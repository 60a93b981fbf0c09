# The guest's first process in its root directory: runs the command, says how it ended, and waits to be switched off.
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LANG=C.UTF-8 TERM=dumb FUSE_AUFS_GUEST=1
for port in /sys/class/virtio-ports/*; do
    case $(cat "$port/name") in
        output) output=/dev/${port##*/} ;;
        status) status=/dev/${port##*/} ;;
    esac
done
ip link set lo up
modprobe -a loop dm-thin-pool $(cat /run/guest/modules)
cd "$(cat /run/guest/repository)"

# A port can be opened once, and programs open /dev/stderr: they get a pipe.
mkfifo /run/output
cat </run/output >"$output" &
writer=$!
(. /run/guest/command) </dev/null >/run/output 2>&1
ended=$?
# A process that is left behind may keep the pipe open.
(sleep 5; kill $writer) 2>/dev/null &
wait $writer
echo $ended >"$status"
while :; do sleep 1000; done
