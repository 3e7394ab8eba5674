#!/bin/sh
# Makes the secrets that compose.yaml mounts, in secrets/; existing ones are kept.
# Put provider keys into secrets/providers/, one per file.
# Only the owner may enter the folder. Files are mounted one by one, so the containers' users must be able to read them.
set -eu
cd "$(dirname "$0")"
umask 077
mkdir -p secrets
mkdir -p -m 755 secrets/providers
for name in redis_admin redis_producer redis_worker redis_monitor grafana_admin; do
  [ -s "secrets/$name" ] || od -An -N24 -tx1 /dev/urandom | tr -d ' \n' > "secrets/$name"
  chmod 444 "secrets/$name"
done
# The login for Flower, at http://127.0.0.1:5555
[ -s secrets/flower_login ] || printf 'operator:%s' "$(od -An -N12 -tx1 /dev/urandom | tr -d ' \n')" > secrets/flower_login
chmod 444 secrets/flower_login
