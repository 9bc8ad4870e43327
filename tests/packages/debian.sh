#!/usr/bin/env bash
# debian.sh [SUITE]: builds the Debian package, installs it by apt into a clean Debian (default: the release of this machine) made by
# debootstrap, compiles and runs there, in C and C++, what takes lagkv in by CMake and pkg-config; then removes it. Needs root,
# debootstrap, cmake, ninja and a mirror in apt's configuration: 3 minutes and 900 MB in build/debian, which are freed at the end.
# Where one of them is missing it says so and exits with 77.
set -euo pipefail
cd "$(dirname "$0")/../.."

skip() {
  echo "skipped: $*"
  exit 77
}
say() { echo "debian.sh: $* (${SECONDS} s)"; }

[ "$(id -u)" = 0 ] || skip "needs root"
for program in debootstrap apt-get dpkg-shlibdeps unshare cmake ninja; do
  command -v "$program" >/dev/null || skip "needs $program"
done
# Mounts that debootstrap leaves behind when it is stopped end with this process, and reach nobody else.
[ -n "${LAGKV_UNSHARED:-}" ] || LAGKV_UNSHARED=1 exec unshare --mount "$0" "$@"

suite=${1:-$(. /etc/os-release && echo "${VERSION_CODENAME:-}")}
mirror=$(apt-get indextargets --format '$(SITE) $(COMPONENT)' "Codename: $suite" 2>/dev/null | awk '$2 == "main" {print $1; exit}')
[ -n "$mirror" ] || mirror=$(apt-get indextargets --format '$(SITE) $(COMPONENT)' | awk '$2 == "main" {print $1; exit}')
[ -n "$mirror" ] || skip "apt's configuration names no mirror"

work=$PWD/build/debian root=$PWD/build/debian/root
rm -rf "$work"
mkdir -p "$work"
trap 'rm -rf "$root"' EXIT

cmake -S . -B "$work/lagkv" -G Ninja -D CMAKE_BUILD_TYPE=Release -D CMAKE_INSTALL_PREFIX=/usr -D LAGKV_C=ON -D LAGKV_TESTS=OFF \
  -D LAGKV_EXAMPLES=OFF >/dev/null
cmake --build "$work/lagkv" >/dev/null
(cd "$work" && cpack -G DEB --config lagkv/CPackConfig.cmake -B "$work" >/dev/null)
package=$(echo "$work"/lagkv-dev_*.deb)
say "$(basename "$package") is built"

debootstrap --variant=minbase "$suite" "$root" "$mirror" >"$work/debootstrap.log" || {
  tail -5 "$work/debootstrap.log"
  skip "debootstrap made no $suite"
}
cp /etc/resolv.conf /etc/hosts "$root/etc/"
apt-config dump | grep '^Acquire::Check' >"$root/etc/apt/apt.conf.d/00host" || true
inside() { chroot "$root" env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin LC_ALL=C DEBIAN_FRONTEND=noninteractive "$@"; }
install() { inside apt-get install -y -qq --no-install-recommends "$@" >>"$work/apt.log" 2>&1 || { tail -20 "$work/apt.log"; exit 1; }; }
say "a clean $suite is there"

# The package first: what it depends on comes with it, nothing else is there yet.
inside apt-get update -qq
cp "$package" "$root/tmp/lagkv.deb"
install /tmp/lagkv.deb
inside dpkg --verify lagkv-dev
library=$(inside ldconfig -p | awk '/liblagkv[.]so[.]/ {print $NF}')
[ -n "$library" ] || { echo "debian.sh: ldconfig does not know liblagkv"; exit 1; }
if inside ldd "$library" | grep "not found"; then exit 1; fi
install g++ cmake make pkg-config
say "the package is installed, $library"

mkdir -p "$root/src/tests/packages" "$root/src/examples"
cp -r tests/packages/{find_package,find_package_c,glue.cpp,glue.hpp,main.cpp} "$root/src/tests/packages/"
cp -r examples/c "$root/src/examples/"
inside bash -euxc '
  cd /src
  for components in "" kernels; do
    cmake -S tests/packages/find_package -B "cpp-$components" -D COMPONENTS=$components
    cmake --build "cpp-$components"
    "cpp-$components/engine"
  done
  cmake -S tests/packages/find_package_c -B c
  cmake --build c
  c/engine
  for package in lagkv lagkv-kernels; do
    g++ -std=c++20 -O2 tests/packages/glue.cpp tests/packages/main.cpp $(pkg-config --cflags --libs $package) -o $package
    ./$package
  done
  cc -std=c99 examples/c/compress_f16.c $(pkg-config --cflags --libs lagkv-c) -o lagkv-c
  ./lagkv-c
' >"$work/inside.log" 2>&1 || { tail -30 "$work/inside.log"; exit 1; }
say "find_package in C++ and C, pkg-config in C++ and C: all ran"

inside apt-get purge -y -qq lagkv-dev >>"$work/apt.log" 2>&1
left=$(inside find /usr /etc /var/cache/ldconfig -iname "*lagkv*")
[ -z "$left" ] || { echo "debian.sh: left behind by the package: $left"; exit 1; }
say "purged, nothing is left; passed"
