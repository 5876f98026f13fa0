#!/bin/sh
# Puts Debian's Chromium into a folder, with the libraries that it needs and this machine lacks, unless there is one.
# Nothing is installed on the machine, and no rights are needed. Where it cannot be done the tests of pages are skipped.
set -eu

folder=$1

if command -v chromium >/dev/null || command -v chromium-browser >/dev/null || command -v google-chrome >/dev/null; then
    echo "there is a Chromium"
    exit 0
fi
if ! command -v apt-get >/dev/null || ! command -v dpkg >/dev/null; then
    echo "there is no apt-get here: install chromium by hand, or the tests of pages are skipped"
    exit 0
fi

mkdir -p "$folder/archives/partial" "$folder/lists/partial"
folder=$(cd "$folder" && pwd)

# Lists and archives of its own, so that none of the machine's has to be locked or written.
set -- -o "Dir::State::lists=$folder/lists" -o "Dir::Cache=$folder" -o "Dir::Cache::archives=$folder/archives" \
    -o Debug::NoLocking=1 -o "APT::Sandbox::User=$(id -un 2>/dev/null || id -u)" -o APT::Get::List-Cleanup=0
if apt-get "$@" -qq update &&
    apt-get "$@" -qq --yes --no-install-recommends --download-only install chromium fonts-dejavu-core >/dev/null; then
    for package in "$folder"/archives/*.deb; do
        dpkg -x "$package" "$folder"
    done
    rm -rf "$folder/lists" "$folder"/*.bin "$folder"/archives
else
    echo "chromium cannot be downloaded: the tests of pages are skipped"
fi
