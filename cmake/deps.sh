#!/usr/bin/env bash
# What the build needs: packages of Debian 12 or Ubuntu 24.04, and NVRTC with its headers (an installed CUDA toolkit
# 12.8 or later, else PyPI wheels in .venv). Exit 3: something is missing that can't be installed from here.
set -euo pipefail
cd "$(dirname "$0")/.."

packages=(g++ make cmake ninja-build git libfmt-dev nlohmann-json3-dev libcli11-dev libgtest-dev libgmock-dev
          libbenchmark-dev libxxhash-dev python3
          llvm-19-dev libclang-19-dev libclang-cpp19-dev libboost-context-dev)

have_package() { [ "$(dpkg-query -W -f '${db:Status-Status}' "$1" 2>/dev/null)" = installed ]; }

# The file a package is wanted for: a compiler or Python that came another way is as good.
have() {
  case "$1" in
    g++ | make | cmake | git | python3) command -v "$1" >/dev/null || have_package "$1" ;;
    ninja-build) command -v ninja >/dev/null || have_package "$1" ;;
    *) have_package "$1" ;;
  esac
}

# install PACKAGE...: by apt-get where that is allowed.
install() {
  local missing=() as_root=()
  local package
  for package in "$@"; do have "$package" || missing+=("$package"); done
  [ ${#missing[@]} -gt 0 ] || return 0
  if [ "$(id -u)" != 0 ]; then as_root=(sudo -n); fi
  if command -v apt-get >/dev/null && { [ "$(id -u)" = 0 ] || sudo -n true 2>/dev/null; }; then
    echo "installing ${missing[*]}"
    "${as_root[@]}" apt-get update -qq
    "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}"
  else
    echo "missing, and not allowed to install here. On Debian 12 or Ubuntu 24.04 run as root:" >&2
    echo "  apt-get install --no-install-recommends ${missing[*]}" >&2
    exit 3
  fi
}

# Folders of CUDA toolkits, the ones named by the environment first.
toolkits() {
  printf '%s\n' "${CUDA_HOME:-}" "${CUDA_PATH:-}" /usr/local/cuda | sed '/^$/d'
}

toolkit_with_nvrtc() {
  local root version
  while read -r root; do
    [ -f "$root/include/cuda.h" ] && [ -f "$root/include/nvrtc.h" ] || continue
    version=$(sed -n 's/^#define CUDA_VERSION \([0-9]*\).*/\1/p' "$root/include/cuda.h")
    [ "${version:-0}" -ge 12080 ] || continue
    if compgen -G "$root/lib64/libnvrtc.so*" >/dev/null || compgen -G "$root/lib/libnvrtc.so*" >/dev/null; then
      echo "$root"
      return 0
    fi
  done < <(toolkits)
  return 1
}

install "${packages[@]}"

if root=$(toolkit_with_nvrtc); then
  echo "NVRTC: $root"
elif compgen -G ".venv/lib/python3*/site-packages/nvidia/cu13/lib/libnvrtc.so.13" >/dev/null &&
  compgen -G ".venv/lib/python3*/site-packages/nvidia/cu13/include/cuda.h" >/dev/null; then
  echo "NVRTC: .venv"
else
  python3 -c 'import ensurepip, venv' 2>/dev/null || install python3-venv
  [ -x .venv/bin/pip ] || python3 -m venv .venv
  if ! .venv/bin/pip install --quiet --disable-pip-version-check \
    'nvidia-cuda-nvrtc==13.0.*' 'nvidia-cuda-runtime==13.0.*'; then
    echo "NVRTC is missing: install a CUDA toolkit 12.8 or later (and set CUDA_HOME), or let pip reach PyPI" >&2
    exit 3
  fi
  echo "NVRTC: .venv"
fi

# What the Python package is built and tested with. Without it the package is left out, and its tests skip, saying so.
python_packages=('apache-tvm-ffi>=0.1.11' 'scikit-build-core>=0.10' pytest numpy)
if ! .venv/bin/python -c 'import tvm_ffi, scikit_build_core, pytest, numpy' 2>/dev/null; then
  python3 -c 'import ensurepip, venv' 2>/dev/null || install python3-venv
  [ -x .venv/bin/pip ] || python3 -m venv .venv
  .venv/bin/pip install --quiet --disable-pip-version-check "${python_packages[@]}" ||
    echo "apache-tvm-ffi could not be had; the Python package will not be built" >&2
fi

# mpirun, which one test runs ranks with. It skips, saying so, where it is missing.
(install openmpi-bin) || echo "openmpi-bin for the tests could not be had; they will skip what needs it" >&2

# An NVRTC of the release before, which the tests compile with too. They skip, saying so, where it is missing.
older=.venv/nvrtc-12.9
if ! compgen -G "$older/nvidia/cuda_nvrtc/lib/libnvrtc.so.12" >/dev/null; then
  python3 -c 'import ensurepip, venv' 2>/dev/null || install python3-venv
  [ -x .venv/bin/pip ] || python3 -m venv .venv
  .venv/bin/pip install --quiet --disable-pip-version-check --no-deps --target "$older" 'nvidia-cuda-nvrtc-cu12==12.9.*' ||
    echo "NVRTC 12.9 for the tests could not be had; they will skip what needs it" >&2
fi
[ ! -d "$older" ] || echo "NVRTC 12.9, for the tests: $older"
