#!/bin/sh
# Puts Debian's Redis and container registry into a folder, with the libraries that they need and this machine lacks,
# and Azurite, which speaks the protocol of Azure's blobs.
# Nothing is installed on the machine, and no rights are needed. Where it cannot be done their tests are skipped.
set -eu

folder=$1
mkdir -p "$folder/archives/partial" "$folder/lists/partial"
folder=$(cd "$folder" && pwd)

if command -v azurite-blob >/dev/null; then
    echo "azurite-blob is installed"
elif ! command -v npm >/dev/null || ! npm install --silent --no-fund --no-audit --prefix "$folder" azurite@3.37.0; then
    echo "azurite cannot be downloaded, or there is no npm: its tests are skipped"
fi

if command -v redis-server >/dev/null && command -v docker-registry >/dev/null; then
    echo "redis-server and docker-registry are installed"
    exit 0
fi
if ! command -v apt-get >/dev/null || ! command -v dpkg >/dev/null; then
    echo "there is no apt-get here: install redis-server and docker-registry by hand, or their tests are skipped"
    exit 0
fi

# Lists and archives of its own, so that none of the machine's has to be locked or written.
set -- -o "Dir::State::lists=$folder/lists" -o "Dir::Cache=$folder" -o "Dir::Cache::archives=$folder/archives" \
    -o Debug::NoLocking=1 -o "APT::Sandbox::User=$(id -un 2>/dev/null || id -u)" -o APT::Get::List-Cleanup=0
if apt-get "$@" -qq update &&
    apt-get "$@" -qq --yes --no-install-recommends --download-only install redis-server docker-registry >/dev/null; then
    for package in "$folder"/archives/*.deb; do
        dpkg -x "$package" "$folder"
    done
    rm -rf "$folder/lists" "$folder"/*.bin "$folder"/archives
else
    echo "redis-server and docker-registry cannot be downloaded: their tests are skipped"
fi
