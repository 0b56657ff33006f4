#!/bin/busybox sh
# The first program of a guest. It mounts what a driver's user space expects, loads the modules it was told to, and
# then either runs one program on the console and reports its exit status, or obeys commands from the host, or both.
#
# The channel is a second serial port, 8-bit clean. The host sends
#     run TOKEN N         followed by N lines of shell, to be run in a subshell
# and gets the output (standard error included), and then, on a line of its own,
#     <<TOKEN STATUS>>
# TOKEN is the host's choice, so that no output can look like the end of one. Unasked, the guest says
#     <<ready UPTIME KERNEL>>     it obeys commands from now on
#     <<exit STATUS>>             the program on the console has ended, the guest powers off next
export PATH=/usr/local/bin:/usr/bin:/usr/sbin:/bin:/sbin HOME=/root TERM=${TERM:-linux}
[ -e /bin/mount ] || /bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev
mkdir -p /dev/pts /dev/shm
mount -t devpts devpts /dev/pts
mount -t tmpfs tmpfs /dev/shm
hostname guest

channel=
read -r line </proc/cmdline
for word in $line; do
  case $word in vfio_user.channel=*) channel=/dev/${word#*=} ;; esac
done

while read -r module parameters; do
  modprobe "$module" $parameters || echo "init: module $module could not be loaded"
done 2>&1 </etc/vfio-user/load

if [ "$channel" ]; then
  exec 3<>"$channel"
  stty -F "$channel" raw -echo
fi

obey() {
  while read -r verb token count <&3; do
    [ "$verb" = run ] || continue
    script=
    while [ "$count" -gt 0 ] && IFS= read -r line <&3; do
      script="$script$line
"
      count=$((count - 1))
    done
    (eval "$script") </dev/null >&3 2>&1
    printf '\n<<%s %s>>\n' "$token" "$?" >&3
  done
}

say_ready() {
  read -r uptime rest </proc/uptime
  read -r release </proc/sys/kernel/osrelease
  printf '\n<<ready %s %s>>\n' "$uptime" "$release" >&3
}

if [ -e /etc/vfio-user/main ]; then
  if [ "$channel" ]; then
    say_ready
    obey &
  fi
  # A session with a terminal of its own, so that Ctrl-C works. /dev/console cannot be one, the port behind it can.
  read -r consoles </sys/class/tty/console/active
  console=/dev/${consoles##* }
  setsid -c /bin/sh /etc/vfio-user/main <"$console" >"$console" 2>&1
  status=$?
  [ -z "$channel" ] || printf '\n<<exit %s>>\n' "$status" >&3
elif [ "$channel" ]; then
  say_ready
  # Not in this process: orphans become children of process 1, and busybox' read forgets the start of a line when one of
  # them ends in the middle of it.
  obey &
  wait $!
fi
poweroff -f
