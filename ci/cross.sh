# What ci/check-macos and ci/check-arm share: a compiler for another system than this one. Sourced, from the repository's root.
#
# A compiler for another system needs that system's standard library. Debian's rustc-web comes with the sources of its own, so the
# library is compiled here, once, by the very compiler that will use it; no toolchain of the machine is touched. Needs Debian 12 or
# later, and root where packages are missing.

# Unoptimised and without debug information: what is asked is whether it compiles and links.
quick=(--config 'profile.dev.package."*".opt-level=0' --config profile.dev.opt-level=0 --config profile.dev.debug=0
  --config profile.dev.package.anemone-reference.opt-level=0 --config 'profile.dev.strip="none"')
python=${PYTHON:-python3}

# apt PACKAGE... : installs Debian packages.
apt() {
  if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
    echo "$0: install the Debian packages $* and run this again" >&2
    exit 2
  fi
  apt-get update -qq
  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@" >/dev/null
}

# cross_compiler TARGET WORK : Debian's compiler first in the path, and in $sysroot its standard library for the target, made under WORK.
cross_compiler() {
  local target=$1 work=$2 library=/usr/lib/rustlib/src/rust/library
  if [ ! -e $library/vendor ] || [ ! -x /usr/bin/clippy-driver ] || [ ! -x /usr/bin/rustc ]; then
    apt rustc-web cargo-web rust-web-src rust-web-clippy
  fi
  export PATH=/usr/bin:$PATH RUSTC=/usr/bin/rustc
  unset RUSTFLAGS CARGO_ENCODED_RUSTFLAGS RUSTC_WRAPPER RUSTUP_TOOLCHAIN
  sysroot=$work/sysroot-$(rustc -V | cut -d' ' -f2)
  if [ -e "$sysroot/whole" ]; then return; fi
  local seed=$work/seed lib=$sysroot/lib/rustlib/$target/lib host
  host=$(rustc -vV | sed -n 's/^host: //p')
  rm -rf "$sysroot" "$seed"
  mkdir -p "$lib" "$seed/src" "$seed/.cargo"
  printf '[package]\nname = "seed"\nedition = "2021"\n[workspace]\n' >"$seed/Cargo.toml"
  : >"$seed/src/lib.rs"
  printf '[source.crates-io]\nreplace-with = "debian"\n[source.debian]\ndirectory = "%s/vendor"\n' $library >"$seed/.cargo/config.toml"
  # Only a nightly compiler offers -Z options; the variable makes a stable one take them. It is set for this call alone.
  (cd "$seed" && RUSTC_BOOTSTRAP=1 CARGO_TARGET_DIR=$seed/target CARGO_PROFILE_RELEASE_OPT_LEVEL=0 \
    cargo build --quiet --release --offline --target "$target" -Zbuild-std=std,panic_abort,test)
  cp "$seed/target/$target/release/deps/"*.rlib "$lib/"
  rm -f "$lib"/libseed*.rlib
  ln -s "/usr/lib/rustlib/$host" "$sysroot/lib/rustlib/$host"
  rm -rf "$seed"
  touch "$sysroot/whole"
}
