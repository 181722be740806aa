#!/bin/sh
# A Debian for 64-bit ARM with Python, numpy and onnxruntime in a folder, and a `python` that runs it on this machine:
#
#     tests/device/make_aarch64.sh FOLDER      # needs Debian 12's apt, qemu-user-static and pip; 150 MB
#
# For correctness, never for timing: everything is emulated.
set -eu
folder=$1
python=${PYTHON:-python3}
root=$folder/root
if [ -x "$folder/python" ]; then
    exit 0
fi
mkdir -p "$folder/apt/lists/partial" "$folder/apt/archives/partial" "$folder/packages" "$root"
: > "$folder/apt/status"
# apt with lists of its own for the other architecture; nothing is installed, and this machine stays as it is.
fetch() {
    apt-get -qq -o APT::Architecture=arm64 -o APT::Architectures::=arm64 -o Dir::State="$folder/apt" \
        -o Dir::State::status="$folder/apt/status" -o Dir::Cache="$folder/apt" -o APT::Sandbox::User=root "$@"
}
fetch update
(cd "$folder/packages" && fetch download libc6 libgcc-s1 libstdc++6 zlib1g libexpat1 libffi8 libssl3 libbz2-1.0 liblzma5 \
    libuuid1 libcrypt1 python3.11-minimal libpython3.11-minimal libpython3.11-stdlib)
for package in "$folder"/packages/*.deb; do
    dpkg-deb --extract "$package" "$root"
done
# onnxruntime reads which processor this is; from this machine's own file it would conclude x86, and crash.
mkdir -p "$root/proc"
cat > "$root/proc/cpuinfo" << 'END'
processor	: 0
BogoMIPS	: 243.75
Features	: fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp ssbs
CPU implementer	: 0x41
CPU architecture: 8
CPU variant	: 0x4
CPU part	: 0xd0b
CPU revision	: 1

END
"$python" -m pip download --quiet --no-deps --only-binary :all: --python-version 3.11 --implementation cp \
    --platform manylinux_2_28_aarch64 --platform manylinux_2_27_aarch64 --platform manylinux2014_aarch64 \
    --dest "$folder/wheels" numpy onnxruntime
for wheel in "$folder"/wheels/*.whl; do
    "$python" -m zipfile --extract "$wheel" "$root/opt/site"
done
# A child process is started by the name that the parent was started by.
cat > "$folder/python.new" << END
#!/bin/sh
exec env PYTHONHOME=/usr PYTHONPATH="/opt/site\${PYTHONPATH:+:\$PYTHONPATH}" \\
    qemu-aarch64-static -cpu cortex-a76 -0 "$folder/python" -L "$root" "$root/usr/bin/python3.11" "\$@"
END
chmod +x "$folder/python.new"
mv "$folder/python.new" "$folder/python"
