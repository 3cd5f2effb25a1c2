#!/bin/sh
# Prints the secret `redis` with new passwords: `sh redis-secret.sh | kubectl -n NAMESPACE apply -f -`.
set -eu
word() { od -An -N32 -tx1 /dev/urandom | tr -d ' \n'; }
hashed() { printf %s "$1" | sha256sum | cut -d' ' -f1; }
own=$(word)
keda=$(word)
admin=$(word)
cat << END
apiVersion: v1
kind: Secret
metadata: {name: redis}
stringData:
  password: $own
  admin-password: $admin
  keda-user: keda
  keda-tls: enable
  keda-password: $keda
  users.acl: |
    user default reset on nopass +ping
    user synerdiff reset on #$(hashed "$own") ~synerdiff:* &synerdiff:* +@all -@admin -@dangerous +info
    user admin reset on #$(hashed "$admin") ~* &* +@all
    user keda reset on #$(hashed "$keda") ~synerdiff:queue:* +@connection +info +xlen +xpending +xinfo
END
