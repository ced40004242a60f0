#!/bin/sh
# Plays `python3 -m pip download … --dest DIR NAME==VERSION` for the tests: sets `dest`, `name` and
# `here`, the folder of the link through which it was started, and runs `here`/behaviour.sh.
here=$(dirname "$0")
while [ $# -gt 0 ]; do
    case $1 in
        --dest) dest=$2; shift ;;
        *==*) name=${1%%==*} ;;
    esac
    shift
done
. "$here/behaviour.sh"
