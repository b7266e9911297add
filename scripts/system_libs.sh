#!/bin/sh
# Makes sure that the system libraries of Open3D are there: installs them as root on Debian/Ubuntu, else prints the line to type.
set -eu
[ "$(uname -s)" = Linux ] || exit 0
[ -z "${SKIP_SYSTEM_LIBS:-}" ] || exit 0
missing=
for pair in libusb-1.0.so.0:libusb-1.0-0 libGL.so.1:libgl1 libEGL.so.1:libegl1 libgomp.so.1:libgomp1; do
  library=${pair%%:*} package=${pair##*:}
  { /sbin/ldconfig -p 2>/dev/null || ldconfig -p; } | grep -q "$library" || missing="$missing $package"
done
[ -n "$missing" ] || exit 0
sudo="sudo "
[ "$(id -u)" != 0 ] || sudo=
if [ -z "$sudo" ] && command -v apt-get >/dev/null; then
  echo "installing system libraries:$missing" >&2
  if apt-get update -q >/dev/null && DEBIAN_FRONTEND=noninteractive apt-get install -y -q $missing >/dev/null; then
    exit 0
  fi
  echo "apt-get could not install them" >&2
fi
echo "Open3D needs system libraries that are not here. Type this, then make again:" >&2
echo "    ${sudo}apt-get update && ${sudo}apt-get install$missing" >&2
echo "(or the same libraries from your system's packages; SKIP_SYSTEM_LIBS=1 goes on without them)" >&2
exit 1
