#!/usr/bin/env bash
# Installs what `make demo|build`, `make test` and `make lint` need and what is not there yet.
#
#   scripts/install-deps.sh demo|test|lint
#
# Knows Debian and Ubuntu (apt). Elsewhere it says what to install. Does nothing when all is there.
# Exit codes: 0 all there, 1 could not install, 2 something that has to be installed by hand.
set -euo pipefail

want=${1:-demo}
case $want in demo | test | lint) ;; *) sed -n '2,7s/^# \{0,1\}//p' "$0" >&2; exit 2 ;; esac
root=$(cd "$(dirname "$0")/.." && pwd)
rust=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' "$root/Cargo.toml")
jobs=()

have() { command -v "$1" >/dev/null 2>&1; }
missing() { jobs+=("$1"); }
at_least() { [ "$(printf '%s\n%s\n' "$1" "$2" | sort -V | head -1)" = "$1" ]; }

# --- Rust, which no script should install unasked --------------------------------------------

rust_hint() {
    cat >&2 <<HINT
$1
Tidegate needs Rust $rust or newer (the cargo packages of Debian 12 and Ubuntu 24.04 are older). Install it with rustup
(curl and ca-certificates from your system's packages):

    curl --proto '=https' --tlsv1.2 -sSf https://sh.rustup.rs | sh -s -- -y --profile minimal
    . "\$HOME/.cargo/env"

and run this again.
HINT
    exit 2
}

if ! have cargo && [ -x "$HOME/.cargo/bin/cargo" ]; then
    rust_hint "cargo is in ~/.cargo/bin, which is not in PATH (the second command below is enough)."
fi
have cargo && have rustc || rust_hint "cargo or rustc is missing."
found=$(rustc --version | cut -d' ' -f2)
at_least "$rust" "${found%%-*}" || rust_hint "rustc is $found ($(command -v rustc)). With rustup: rustup update stable."

if [ "$want" = lint ]; then
    components=()
    cargo fmt --version >/dev/null 2>&1 || components+=(rustfmt)
    cargo clippy --version >/dev/null 2>&1 || components+=(clippy)
    if [ ${#components[@]} -gt 0 ]; then
        { have rustup && rustup component add "${components[@]}"; } || {
            echo "Missing: ${components[*]}, and rustup is not there or cannot reach its server." >&2
            echo "Install them with: rustup component add ${components[*]}" >&2
            exit 2
        }
    fi
fi

# --- what the native parts (librdkafka, RocksDB) need to compile ------------------------------

have cc || missing cc
have c++ || missing c++
have make || missing make
have pkg-config || missing pkg-config
if have pkg-config; then
    pkg-config --exists openssl || missing openssl
    pkg-config --exists zlib || missing zlib
else
    missing openssl
    missing zlib
fi

# bindgen loads libclang.so at build time and needs clang's own headers (stddef.h) beside it. Both come
# with libclang-dev; a libclang1 that another package brought in has no headers.
libclang() {
    local lib dir
    for lib in ${LIBCLANG_PATH:+"$LIBCLANG_PATH"/libclang*.so*} /usr/lib/llvm-*/lib/libclang*.so* \
        /usr/lib/*-linux-gnu/libclang*.so* /usr/lib64/libclang.so* /usr/lib64/llvm*/lib*/libclang.so* \
        /usr/lib/libclang.so* /usr/local/lib/libclang.so* /Library/Developer/CommandLineTools/usr/lib/libclang.dylib \
        /Applications/Xcode.app/Contents/Developer/Toolchains/*/usr/lib/libclang.dylib /opt/homebrew/opt/llvm/lib/libclang.dylib; do
        if [ ! -e "$lib" ]; then continue; fi
        dir=$(dirname "$(readlink -f "$lib")")
        compgen -G "$dir/clang/*/include/stddef.h" >/dev/null && return 0
        compgen -G "$dir/../lib/clang/*/include/stddef.h" >/dev/null && return 0
        compgen -G "/usr/lib/llvm-*/lib/clang/*/include/stddef.h" >/dev/null && return 0
        compgen -G "/usr/lib/clang/*/include/stddef.h" >/dev/null && return 0
    done
    return 1
}
libclang || missing libclang

# --- what the tests need: a Java for Apache Kafka, Maven to fetch it ----------------------------

java_version() { java -version 2>&1 | sed -n 's/.*version "\([0-9]*\).*/\1/p' | head -1; }
kafka=${TIDEGATE_KAFKA_HOME:-$HOME/.cache/tidegate/kafka-4.3.1}
if [ "$want" = test ]; then
    { have java && [ "$(java_version || true)" -ge 17 ] 2>/dev/null; } || missing java
    [ -e "$kafka/.complete" ] || have mvn || missing maven
fi

# --- installing ---------------------------------------------------------------------------------

apt_package() {
    case $1 in
    cc) echo gcc libc6-dev ;;
    c++) echo g++ ;;
    make) echo make ;;
    pkg-config) echo pkg-config ;;
    openssl) echo libssl-dev ;;
    zlib) echo zlib1g-dev ;;
    libclang) echo libclang-dev ;;
    # Ubuntu 22.04's default is 11, Debian 13 has no 17 but a default of 21.
    java) if apt-cache show openjdk-17-jre-headless >/dev/null 2>&1; then echo openjdk-17-jre-headless; else echo default-jre-headless; fi ;;
    maven) echo maven ;;
    esac
}

by_hand() {
    local test_fedora= test_brew= test_apt= test_arch=
    if [ "$want" = test ]; then
        test_apt=" default-jre-headless maven"
        test_fedora=" java-21-openjdk-headless maven"
        test_brew=" openjdk@21 maven"
        test_arch=" jre21-openjdk-headless maven"
    fi
    cat >&2 <<HINT
Missing: ${jobs[*]}. $1 Install, according to your system:

    Debian, Ubuntu   apt-get install gcc g++ make pkg-config libssl-dev zlib1g-dev libclang-dev$test_apt
    Fedora           dnf install gcc gcc-c++ make pkgconf openssl-devel zlib-devel clang-devel$test_fedora
    Arch             pacman -S base-devel openssl zlib clang$test_arch
    macOS            xcode-select --install; brew install pkgconf openssl@3$test_brew

Java has to be 17 or newer. If libclang lies elsewhere, set LIBCLANG_PATH to its folder.
HINT
    exit 2
}

if [ ${#jobs[@]} -gt 0 ]; then
    have apt-get || by_hand "There is no apt-get here."
    as_root=()
    if [ "$(id -u)" != 0 ]; then
        have sudo || by_hand "Neither root nor sudo."
        as_root=(sudo)
    fi
    "${as_root[@]}" apt-get update -q || echo "apt-get update failed; trying with the lists that are there" >&2
    packages=()
    for job in "${jobs[@]}"; do
        read -r -a names <<<"$(apt_package "$job")"
        packages+=("${names[@]}")
    done
    echo "Installing ${packages[*]}"
    "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends "${packages[@]}" || {
        echo "apt-get could not install ${packages[*]}" >&2
        exit 1
    }
    libclang || { echo "libclang or its headers are still not found; set LIBCLANG_PATH to the folder of libclang.so" >&2; exit 2; }
    if [ "$want" = test ] && ! [ "$(java_version)" -ge 17 ] 2>/dev/null; then
        echo "java is $(java_version), Apache Kafka needs 17 or newer" >&2
        exit 2
    fi
fi

if [ "$want" = test ] && [ ! -e "$kafka/.complete" ]; then
    "$root/tests/kafka/install.sh"
fi
