#!/bin/sh
# Makes what compose.yaml wants in secrets/, and keeps what is there. Provider keys go, one a file, into
# secrets/providers/. The folder is its owner's alone; the files in it are mounted one by one and must be
# readable by the users that containers run as.
set -eu
cd "$(dirname "$0")"
umask 077
mkdir -p secrets
mkdir -p -m 755 secrets/providers
for name in redis_admin redis_producer redis_worker redis_monitor grafana_admin; do
  [ -s "secrets/$name" ] || od -An -N24 -tx1 /dev/urandom | tr -d ' \n' > "secrets/$name"
  chmod 444 "secrets/$name"
done
# Of http://127.0.0.1:5555
[ -s secrets/flower_login ] || printf 'operator:%s' "$(od -An -N12 -tx1 /dev/urandom | tr -d ' \n')" > secrets/flower_login
chmod 444 secrets/flower_login
