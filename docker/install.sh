#!/bin/sh
# Runs as root in a container of the base, without a network: `dependencies` or `code` from /wheels into /opt/minimind.
# docker/build.py takes the result out; pip and all else in the container go away with it.
set -eu
# No variable of the base but its PATH: a PIP_TARGET or PYTHONHOME there would decide what comes out.
[ "${bare:-}" ] || exec env -i bare=1 "PATH=$PATH" sh "$0" "$@"
umask 022
export LC_ALL=C.UTF-8 PYTHONHASHSEED=0 PYTHONDONTWRITEBYTECODE=1 PIP_DISABLE_PIP_VERSION_CHECK=1
venv=/opt/minimind

python3 -m venv --without-pip $venv
python3 -m venv /tmp/pip
rm -f $venv/bin/activate* $venv/bin/Activate.ps1

from_wheels() {
  /tmp/pip/bin/pip --python $venv/bin/python install --quiet --no-cache-dir --root-user-action ignore \
    --no-compile --no-index --find-links /wheels --no-deps --only-binary :all: "$@"
}

compiled=$venv/lib
case $1 in
dependencies)
  from_wheels --require-hashes --requirement /wheels/requirements.txt
  # Any --user may be given at run time, hence a home that everybody can write to and a name for ids without one.
  echo minimind:x:1000: >>/etc/group
  echo minimind:x:1000:1000::/home/minimind:/usr/sbin/nologin >>/etc/passwd
  install --directory --mode 1777 /home/minimind
  ;;
code)
  find $venv ! -type d >/tmp/skeleton # is in the dependencies' layer
  from_wheels minimind-launch
  xargs -d '\n' rm -f </tmp/skeleton
  rm -r $venv/lib/python3*/site-packages/launch $venv/bin/launch # the launcher starts containers, it is not started in one
  compiled=$(echo $venv/lib/python3*/site-packages/minimind)
  ;;
esac

# Bytecode that names the hash of its source instead of its time, in one process and one order: the same bytes each time.
# A few packages carry files for other versions of Python, which do not compile and are never imported.
python3 -m compileall -q -j 1 --invalidation-mode unchecked-hash "$compiled" >/tmp/compiled 2>&1 || true
