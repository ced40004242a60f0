#!/bin/sh
# Plays `python3 -m pip download … --dest DIR NAME==VERSION` for the tests: delivers the wheel named
# by FAKE_WHEEL, or fails as without a network if there is none.
while [ $# -gt 0 ]; do
    case $1 in
        --dest) dest=$2; shift ;;
        *==*) name=${1%%==*} ;;
    esac
    shift
done
if [ -z "$FAKE_WHEEL" ]; then
    echo "ERROR: No matching distribution found for $name" >&2
    exit 1
fi
cp "$FAKE_WHEEL" "$dest/$name-1-py3-none-any.whl"
