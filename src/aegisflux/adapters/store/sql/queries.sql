-- Named queries: "-- name: <name>", then one statement.
-- A statement that writes several rows of `hosts` or `reports` locks them in the order of their keys: heartbeats, acks and manifests are
-- stored beside changes, and two that lock in different orders wait for each other. The lock is that of an update of no key, which
-- the foreign keys of other tables do not wait for.

-- name: audit_head
select seq, hash, mac from audit_head where one

-- name: put_gate
insert into audit_gate (inner_key, outer_key) values ($1, $2)
on conflict (one) do update set inner_key = excluded.inner_key, outer_key = excluded.outer_key
where (audit_gate.inner_key, audit_gate.outer_key) <> (excluded.inner_key, excluded.outer_key)

-- name: lock_head
select seq, hash, mac from audit_head where one for update

-- name: first_head
insert into audit_head (seq, hash, mac) values (0, $1, $2) on conflict do nothing

-- name: move_head
select audit_move($1, $2, $3, $4)

-- name: add_audit
select audit_add($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12)

-- name: audit_lines
select seq, at, actor, source, action, object, before, after, reason, request_id, hash
from audit where seq > $1 order by seq limit $2::bigint

-- name: audit_newest
select seq, at, actor, source, action, object, before, after, reason, request_id, hash
from audit where seq < $1 order by seq desc limit $2

-- name: services
select id, name, selectors, host_labels, latest, stable, promotions, open_version, open_until, created_at
from services order by id

-- name: service
select id, name, selectors, host_labels, latest, stable, promotions, open_version, open_until, created_at
from services where id = $1

-- Several services at once, for what is decided of many of them in one transaction.
-- name: services_of
select id, name, selectors, host_labels, latest, stable, promotions, open_version, open_until, created_at
from services where id = any($1::bigint[])

-- name: service_named
select id from services where name = $1

-- name: free_service_id
select coalesce(max(id), 99) + 1 as id from services where id < 4294967295

-- name: put_service
insert into services (id, name, selectors, host_labels, created_at) values ($1, $2, $3, $4, $5)
on conflict (id) do update set name = $2, selectors = $3, host_labels = $4

-- name: put_rollout
update services s set latest = $2, stable = $3, promotions = $4, open_version = $5, open_until = $6
from (
    select stable as was, open_version as was_open, open_until as was_until from services where id = $1 for no key update
) before where s.id = $1 returning before.was, before.was_open, before.was_until

-- Whether a service has snapshots, on hosts or to be given to them.
-- name: has_snapshots
select exists (select 1 from services s where s.id = $1 and (s.stable is not null or s.open_version is not null))
    or exists (select 1 from assignments where service_id = $1) as found

-- What has a name in its policy ($1; $2: the same with its dots escaped): rollouts under way or in force, and approved plans that no
-- rollout began. The text of a stored policy is ours, so that a name stands in it as it is.
-- name: naming
select what, id from (
    select 'rollout' as what, r.id, p.policy from rollouts r join plans p on p.id = r.plan
    where r.stage in ('observe', 'canary', 'waves', 'promoted')
    union all
    select 'approved plan', p.id, p.policy from plans p
    where p.approved_by is not null and not exists (select 1 from rollouts r where r.plan = p.id)
) named
where strpos(policy, $1::text) > 0 and policy ~ ('(^|[^a-z0-9._-])' || $2::text || '($|[^a-z0-9._-])')
order by what desc, id limit 6

-- Rollouts under way that are to reach a host.
-- name: reaching
select r.id from rollouts r, jsonb_array_elements(r.parts) part
where r.stage in ('observe', 'canary', 'waves') and part -> 'hosts' ? $1::text order by r.id limit 1

-- Other services with snapshots, and the cgroups that are theirs.
-- name: services_with_snapshots
select name, selectors, host_labels from services s where s.id <> $1 and cardinality(s.selectors) > 0
and (s.stable is not null or s.open_version is not null or exists (select 1 from assignments a where a.service_id = s.id))
order by s.id

-- name: hold_change
insert into service_changes (service_id, name, selectors, host_labels, created_at, created_by, author, seen, reason)
values ($1, $2, $3, $4, $5, $6, $7, $8, $9)

-- The change of a service that waits, and what the service is now.
-- name: held_change
select c.id, c.service_id, c.name, c.selectors, c.host_labels, c.created_at, c.created_by, c.author, c.seen, c.reason,
    s.name as now_name, s.selectors as now_selectors, s.host_labels as now_labels
from service_changes c join services s on s.id = c.service_id where c.service_id = $1

-- Hosts that would begin or cease to run a service by changes of its labels, as `state.running` counts them: how many, and the first.
-- name: moved_by_changes
select c.id, count(*) filter (where x.after) as begin, count(*) filter (where x.before) as cease,
    (array_agg(h.host_id order by h.host_id) filter (where x.after))[1:$2::int] as first_begin,
    (array_agg(h.host_id order by h.host_id) filter (where x.before))[1:$2::int] as first_cease
from service_changes c join services s on s.id = c.service_id cross join hosts h
left join reports r on r.service_id = c.service_id and r.host_id = h.host_id and cardinality(r.cgroups) > 0
cross join lateral (select
    s.host_labels <@ h.labels and (s.host_labels <> '{}' or r.host_id is not null) as before,
    c.host_labels <@ h.labels and (c.host_labels <> '{}' or (r.host_id is not null and cardinality(c.selectors) > 0)) as after
) x
where c.id = any($1::bigint[]) and h.released_at is null and x.before <> x.after group by c.id

-- name: change_named
select id, service_id from service_changes where name = $1 order by id limit 1

-- name: held_changes
select c.id, c.service_id, c.name, c.selectors, c.host_labels, c.created_at, c.created_by, c.author, c.seen, c.reason,
    s.name as now_name, s.selectors as now_selectors, s.host_labels as now_labels
from service_changes c join services s on s.id = c.service_id order by c.id limit $1

-- name: end_change
delete from service_changes where service_id = $1

-- name: delete_service
with gone as (delete from contents where service_id = $1),
held as materialized (select host_id from reports where service_id = $1 order by host_id for update),
reported as (delete from reports r using held where r.service_id = $1 and r.host_id = held.host_id)
select 1

-- name: delete_service_row
delete from services where id = $1

-- name: content
select service_id, version, digest, rules_digest, tables_digest, tables_format, entries, ttl_seconds, mode, on_expiry,
       established, created_at, created_by, author, copy_of, payload_sha256, mac
from contents where service_id = $1 and version = $2

-- A version and those that it brings back, down to the one that is no copy.
-- name: content_lineage
with recursive lineage as (
    select version, copy_of from contents where service_id = $1 and version = $2
    union all
    select c.version, c.copy_of from contents c join lineage l on c.service_id = $1 and c.version = l.copy_of and l.copy_of < l.version
)
select service_id, version, digest, rules_digest, tables_digest, tables_format, entries, ttl_seconds, mode, on_expiry,
       established, created_at, created_by, author, copy_of, payload_sha256, mac
from contents where service_id = $1 and version in (select version from lineage) order by version desc

-- How long a lease of the promoted version of each of these services may be.
-- name: stable_ttls
select s.id, c.ttl_seconds from services s join contents c on c.service_id = s.id and c.version = s.stable
where s.id = any($1::bigint[])

-- name: contents
select service_id, version, digest, rules_digest, tables_digest, tables_format, entries, ttl_seconds, mode, on_expiry,
       established, created_at, created_by, copy_of
from contents where service_id = $1 and version < $2 order by version desc limit $3

-- Every content with its rules, from a service and version on, by pages of $3.
-- name: all_contents
select service_id, version, digest, rules_digest, tables_digest, tables_format, entries, ttl_seconds, mode, on_expiry,
       established, created_at, created_by, author, copy_of, payload_sha256, mac,
       snapshot, payload, key_id, signature
from contents where (service_id, version) > ($1::bigint, $2::bigint)
order by service_id, version limit $3

-- name: seal_contents
update contents c set mac = g.mac, payload_sha256 = g.digest
from unnest($1::bigint[], $2::bigint[], $3::bytea[], $4::bytea[]) as g (service_id, version, mac, digest)
where c.service_id = g.service_id and c.version = g.version and c.mac is null

-- name: all_enroll_tokens
select hash, labels, host_id, expires_at, used_by from enroll_tokens order by created_at

-- name: all_key_sets
select version, signing, envelope from key_sets order by version

-- name: all_rollouts
select id, plan, created_at, created_by, stage, run, parts from rollouts order by id

-- name: all_rollout_steps
select rollout, count(*) as steps from rollout_steps group by rollout order by rollout

-- name: all_health
select service_id, host_id, healthy, detail from service_health order by service_id, host_id

-- name: all_plans
select id, created_at, created_by, author, proposal, policy, asked, inventory_digest, flows_digest, digest, inputs, body, approved_by,
    approver, accepted
from plans where id > $1 order by id limit $2

-- name: put_content
insert into contents (service_id, version, digest, rules_digest, tables_digest, tables_format, entries, ttl_seconds, mode,
    on_expiry, established, created_at, created_by, copy_of, snapshot, payload, key_id, signature, author, payload_sha256, mac)
values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19, $20, $21)

-- name: snapshot
select snapshot, digest from contents where service_id = $1 and version = $2

-- name: snapshot_by_digest
select snapshot from contents where digest = $1

-- name: sealed
select service_id, version, digest, rules_digest, tables_digest, tables_format, entries, ttl_seconds, mode, on_expiry,
       established, created_at, created_by, author, copy_of, payload_sha256, mac,
       payload, key_id, signature
from contents where digest = $1

-- name: hosts
select host_id, public_key, labels, enrolled_at, released_at, serial, seen_at, every, heartbeat, heartbeat_serial, left_out
from hosts where released_at is null order by host_id

-- name: host
select host_id, public_key, labels, enrolled_at, released_at, serial, seen_at, every, heartbeat, heartbeat_serial, left_out
from hosts where host_id = $1

-- name: host_labels
select host_id, labels from hosts where released_at is null order by host_id

-- The labels of these hosts.
-- name: labels_of
select host_id, labels from hosts where host_id = any($1::text[]) and released_at is null

-- Hosts whose labels match those of a service, and that have no snapshot of it.
-- name: unassigned
select h.host_id from hosts h where h.released_at is null and h.labels @> $2::jsonb
and not exists (select 1 from assignments a where a.host_id = h.host_id and a.service_id = $1) order by h.host_id

-- How many services each of these hosts has a snapshot of, and how long they can be in its manifest.
-- name: assigned_counts
with sizes as materialized (
    select id, $2 + octet_length(array_to_string(selectors, '')) + $3 * cardinality(selectors) as bytes from services
)
select a.host_id, count(*) as services, sum(z.bytes)::bigint as bytes from assignments a join sizes z on z.id = a.service_id
where a.host_id = any($1::text[]) group by a.host_id

-- name: host_keys
select host_id, public_key from hosts where released_at is null

-- What its former owner said of a name is not what the new one says.
-- name: put_host
insert into hosts (host_id, public_key, labels, enrolled_at, serial, dirty) values ($1, $2, $3, $4, 1, true)
on conflict (host_id) do update set public_key = $2, labels = $3, enrolled_at = $4, released_at = null,
    serial = hosts.serial + 1, dirty = true,
    addresses = case when hosts.public_key = $2 then hosts.addresses else '{}' end,
    seen_at = case when hosts.public_key = $2 then hosts.seen_at else 0 end,
    heartbeat_serial = case when hosts.public_key = $2 then hosts.heartbeat_serial else 0 end

-- name: release_host
update hosts set released_at = $2, public_key = null, heartbeat = null, runs = null, message = null, digests = '{}',
    serial = serial + 1, dirty = false where host_id = $1

-- name: delete_reports
with held as materialized (select service_id from reports where host_id = $1 order by service_id for update)
delete from reports r using held where r.host_id = $1 and r.service_id = held.service_id

-- name: relabel_host
update hosts set labels = $2 where host_id = $1

-- The newest serial of a manifest, whose it is.
-- name: newest_serial
select coalesce(max(serial), 0) as serial from hosts

-- A host that is new to an older store begins above what it may have had before.
-- name: serial_above
update hosts set serial = greatest(serial, $2::bigint) where host_id = $1

-- After an older store was accepted: by more than $2 above the newest serial that there was, $1, and what the host itself
-- reports; the report of a host counts for that host alone, and as far as $3.
-- name: raise_serials
with held as materialized (select host_id from hosts order by host_id for no key update)
update hosts h set serial = greatest(h.serial, $1::bigint, least(h.heartbeat_serial, $3::bigint)) + $2::bigint + 1,
    dirty = h.released_at is null
from held where h.host_id = held.host_id

-- Once for a change, when all of it is known: see Change.bump.
-- name: bump
with held as materialized (
    select host_id from hosts where host_id = any($1::text[]) and released_at is null order by host_id for no key update
)
update hosts h set serial = h.serial + 1, dirty = true from held where h.host_id = held.host_id

-- name: bump_all
with held as materialized (select host_id from hosts where released_at is null order by host_id for no key update)
update hosts h set serial = h.serial + 1, dirty = true from held where h.host_id = held.host_id

-- A host that says it runs a service is believed where the labels of the service are its own.
-- name: running
select r.host_id from reports r join hosts h using (host_id) join services s on s.id = r.service_id
where r.service_id = $1 and cardinality(r.cgroups) > 0 and s.host_labels <@ h.labels

-- name: assignments
select host_id, version, lease_until, renewed, changed_at from assignments where service_id = $1 order by host_id

-- name: assignments_of_host
select service_id, version from assignments where host_id = $1

-- name: all_assigned
select host_id, service_id from assignments

-- Services of which a host has a version, or would be given one that it runs later.
-- name: services_in_force
select id as service_id from services s where stable is not null or (open_version is not null and open_until > $1)
or exists (select 1 from assignments a where a.service_id = s.id) order by id

-- Of these hosts, those that would be given more than a manifest has room for with this service: by number, and by
-- bytes. Those that have the service already, and are not asked `again`, need no more room.
-- name: crowded
with sizes as materialized (
    select id, $5 + octet_length(array_to_string(selectors, '')) + $6 * cardinality(selectors) as bytes from services
), given as (
    select h.host_id, $2::bigint as id from unnest($1::text[]) as h (host_id)
    where $7 or not exists (select from assignments a where a.host_id = h.host_id and a.service_id = $2)
    union
    select host_id, service_id from assignments where host_id = any($1::text[])
)
select host_id, count(*) as services, sum(bytes)::bigint as bytes from given join sizes using (id)
group by host_id having bool_or(id = $2) and (count(*) > $3 or sum(bytes) > $4) order by host_id

-- Hosts that are offered more than a manifest has room for, of those that run for these labels.
-- name: overfull
with sizes as materialized (
    select host_labels, $4 + octet_length(array_to_string(selectors, '')) + $5 * cardinality(selectors) as bytes
    from services where cardinality(selectors) > 0
), offered as (
    select h.host_id, count(*) as services, sum(z.bytes) as bytes from hosts h join sizes z on z.host_labels <@ h.labels
    where h.released_at is null and $1::jsonb <@ h.labels
    and ((select count(*) from sizes) > $2 or (select sum(bytes) from sizes) > $3)
    group by h.host_id
)
select count(*) as hosts, coalesce(min(host_id), '') as host_id, max(services) as services, max(bytes)::bigint as bytes,
    (select count(*) from sizes where host_labels = '{}') as everywhere
from offered where services > $2 or bytes > $3

-- name: assign
with ended as (
    delete from withheld w using unnest($1::bigint[], $2::text[]) as given (s, h) where w.service_id = given.s and w.host_id = given.h
)
insert into assignments (service_id, host_id, version, lease_until, renewed, changed_at)
select s, h, v, l, r, $6 from unnest($1::bigint[], $2::text[], $3::bigint[], $4::bigint[], $5::boolean[]) as given (s, h, v, l, r)
on conflict (host_id, service_id) do update
set version = excluded.version, lease_until = excluded.lease_until, renewed = excluded.renewed, changed_at = excluded.changed_at,
    preflight = false

-- What hosts were given, the newest last: each list as text.
-- name: remember_had
insert into had (service_id, host_id, versions, mac)
select s, h, v::bigint[], m from unnest($1::bigint[], $2::text[], $3::text[], $4::bytea[]) as given (s, h, v, m)
on conflict (service_id, host_id) do update set versions = excluded.versions, mac = excluded.mac

-- name: had
select service_id, host_id, versions, mac from had where service_id = $1

-- name: had_of
select service_id, host_id, versions, mac from had where service_id = any($1::bigint[]) and host_id = any($2::text[])

-- name: all_had
select service_id, host_id, versions, mac from had where (service_id, host_id) > ($1::bigint, $2::text) order by service_id, host_id limit $3

-- name: seal_had
update had h set mac = g.mac from unnest($1::bigint[], $2::text[], $3::bytea[]) as g (service_id, host_id, mac)
where h.service_id = g.service_id and h.host_id = g.host_id and h.mac is null

-- name: forget_had
with ended as (delete from withheld where host_id = $1)
delete from had where host_id = $1

-- name: withhold
insert into withheld (service_id, host_id) select $1, h from unnest($2::text[]) as given (h) on conflict do nothing

-- name: withheld
select service_id, host_id from withheld where service_id = any($1::bigint[])

-- name: withheld_of
select service_id, host_id from withheld where service_id = any($1::bigint[]) and host_id = any($2::text[])

-- name: withheld_of_host
select service_id from withheld where host_id = $1

-- name: all_withheld
select service_id, host_id from withheld order by service_id, host_id

-- Versions of a service, without what they say.
-- name: contents_named
select service_id, version, digest, rules_digest, tables_digest, tables_format, entries, ttl_seconds, mode, on_expiry,
       established, created_at, created_by, author, copy_of, payload_sha256, mac
from contents where service_id = $1 and version = any($2::bigint[])

-- name: unassign
delete from assignments where service_id = $1 and host_id = any($2::text[])

-- name: unassign_host
delete from assignments where host_id = $1

-- name: renew
with due as (
    select a.host_id, a.service_id, least(c.ttl_seconds, $2::bigint) as ttl
    from assignments a join contents c on c.service_id = a.service_id and c.version = a.version
    where a.renewed and (a.lease_until - $1::bigint) * 2 <= least(c.ttl_seconds, $2::bigint)
    order by a.lease_until limit $3
)
update assignments a set lease_until = $1::bigint + due.ttl from due
where a.host_id = due.host_id and a.service_id = due.service_id returning a.host_id

-- name: aged
select host_id from hosts where released_at is null and not dirty and issued_at < $1 limit $2

-- Without those of which this very manifest cannot be made or sent: they must not stand before the others.
-- name: dirty
select host_id, labels, serial, built_serial, message, left_out from hosts where dirty and released_at is null
and (host_id, serial) not in (select * from unnest($2::text[], $3::bigint[])) order by host_id limit $1

-- name: active_of
select a.host_id, a.service_id, s.name, s.selectors, a.version, c.digest, a.lease_until, a.preflight, c.copy_of
from assignments a
join services s on s.id = a.service_id
join contents c on c.service_id = a.service_id and c.version = a.version
where a.host_id = any($1::text[])

-- name: offered
select id, name, selectors, host_labels from services where cardinality(selectors) > 0

-- name: store_built
with held as materialized (select host_id from hosts where host_id = any($1::text[]) order by host_id for no key update)
update hosts h set message = g.message, built_serial = g.serial, issued_at = $4, digests = string_to_array(g.digests, ','),
    left_out = g.left_out
from held join unnest($1::text[], $2::bigint[], $3::bytea[], $5::text[], $6::text[])
    as g (host_id, serial, message, digests, left_out) using (host_id)
where h.host_id = held.host_id and h.serial = g.serial and h.built_serial <> g.serial returning h.host_id

-- name: published
with held as materialized (select host_id from hosts where host_id = any($1::text[]) order by host_id for no key update)
update hosts h set dirty = false from held join unnest($1::text[], $2::bigint[]) as g (host_id, serial) using (host_id)
where h.host_id = held.host_id and h.serial = g.serial

-- name: published_messages
select host_id, serial, message from hosts where released_at is null and message is not null and built_serial = serial
order by host_id

-- name: built_of
select host_id, serial from hosts where host_id = any($1::text[]) and built_serial = serial and released_at is null

-- name: digests_of_host
select digests from hosts where host_id = $1 and released_at is null

-- name: unsent
select id, msg_id, payload from outbox where not sent order by id limit $1

-- name: add_outbox
insert into outbox (msg_id, payload, created_at) values ($1, $2, $3) on conflict (msg_id) do nothing

-- name: sent
update outbox set sent = true where id = $1

-- name: newest_sent
select id, msg_id from outbox where sent order by id desc limit 1

-- name: send_again
update outbox set sent = false where sent and id > coalesce((select id from outbox where msg_id = $1), 0)

-- name: forget_outbox
delete from outbox where sent and created_at < $1

-- name: forget_idempotency
delete from idempotency where created_at < $1

-- name: remembered
select request, answer from idempotency where actor = $1 and key = $2

-- name: remember
insert into idempotency (actor, key, request, answer, created_at) values ($1, $2, $3, $4, $5)

-- name: token
select id, name, role, hash, created_at, created_by, expires_at, host_id, revoked_at, mac from tokens where hash = $1

-- name: tokens
select id, name, role, hash, created_at, created_by, expires_at, last_used, revoked_at, host_id, mac from tokens order by created_at, id

-- name: add_token
insert into tokens (id, name, role, hash, created_at, created_by, expires_at, host_id, mac)
values ($1, $2, $3, $4, $5, $6, $7, $8, $9)

-- One that lies in a file of ours, in place of a row that is not believed.
-- name: keep_token
insert into tokens (id, name, role, hash, created_at, created_by, expires_at, host_id, mac)
values ($1, $2, $3, $4, $5, $6, $7, $8, $9)
on conflict (hash) do update set id = excluded.id, name = excluded.name, role = excluded.role, created_at = excluded.created_at,
    created_by = excluded.created_by, expires_at = excluded.expires_at, host_id = excluded.host_id, mac = excluded.mac,
    revoked_at = null

-- name: seal_token
update tokens set mac = $2 where id = $1

-- name: revoke_token
update tokens set revoked_at = $2 where id = $1 and revoked_at is null returning hash

-- name: touch_token
update tokens set last_used = $2 where id = $1

-- name: add_enroll_token
insert into enroll_tokens (hash, labels, host_id, created_at, created_by, expires_at) values ($1, $2, $3, $4, $5, $6)

-- name: enroll_token
select labels, host_id, expires_at, used_by, used_key, answer from enroll_tokens where hash = $1 for update

-- name: read_enroll_token
select labels, host_id, expires_at, used_by, used_key, answer from enroll_tokens where hash = $1

-- name: use_enroll_token
update enroll_tokens set used_by = $2, used_key = $3, used_at = $4, answer = $5 where hash = $1

-- name: key_set
select version, envelope, signing from key_sets order by version desc limit 1

-- name: add_key_set
insert into key_sets (version, envelope, signing, created_at) values ($1, $2, $3, $4)

-- name: rotation
select phase, new_key, old_key, started_at, waits_until, wait_seconds, without from rotation where one

-- name: put_rotation
insert into rotation (phase, new_key, old_key, started_at, waits_until, wait_seconds, without) values ($1, $2, $3, $4::bigint, $4::bigint + $5::bigint, $5::bigint, $6::text[])
on conflict (one) do update set phase = $1, new_key = $2, old_key = $3, started_at = $4, waits_until = excluded.waits_until,
    wait_seconds = excluded.wait_seconds, without = excluded.without

-- Hosts that the rotation does not wait for any more.
-- name: rotate_without
update rotation set without = $1

-- name: end_rotation
delete from rotation

-- name: reports
select r.host_id, r.service_id, r.state, r.version, r.digest, r.tables_digest, r.deadline, r.since, r.cgroups, r.conflicts,
    r.drift, r.ack_serial, r.ack_version, r.ack_digest, r.ack_at, r.ack_stored_at, r.awaits, r.confirmed_at, r.nack_serial,
    r.nack_version, r.nack_reason, r.nack_detail, r.nack_at
from reports r join hosts h using (host_id) where h.released_at is null and r.service_id = $1 order by r.host_id

-- Of services that there are: what a host reports has as many rows as operators made services.
-- name: store_acks
insert into reports as r (host_id, service_id, state, version, digest, tables_digest, deadline, since, ack_serial, ack_version,
    ack_digest, ack_at, ack_stored_at, awaits)
select g.host_id, g.service_id, case when g.state = 'in_force' and c.mode = 'observe' then 'observing' else g.state end, g.version, g.digest,
    g.tables_digest, g.deadline, $10, g.serial, g.version, g.digest, g.applied_at, $10, g.awaits
from unnest($1::text[], $2::bigint[], $3::text[], $4::bigint[], $5::text[], $6::text[], $7::bigint[], $8::bigint[],
    $9::double precision[], $11::boolean[])
    as g (host_id, service_id, state, version, digest, tables_digest, deadline, serial, applied_at, awaits)
join hosts h on h.host_id = g.host_id and h.released_at is null
join services s on s.id = g.service_id
left join contents c on c.digest = g.digest
order by g.host_id, g.service_id
on conflict (host_id, service_id) do update set state = excluded.state, version = excluded.version, digest = excluded.digest,
    tables_digest = excluded.tables_digest, deadline = excluded.deadline, ack_serial = excluded.ack_serial,
    since = case when r.digest is distinct from excluded.digest or r.state <> excluded.state then excluded.since else r.since end,
    ack_version = excluded.ack_version, ack_digest = excluded.ack_digest, ack_at = excluded.ack_at,
    ack_stored_at = excluded.ack_stored_at, awaits = excluded.awaits,
    confirmed_at = case when r.ack_digest is distinct from excluded.ack_digest then null else r.confirmed_at end
where r.ack_serial <= excluded.ack_serial

-- name: store_nacks
insert into reports as r (host_id, service_id, state, since, nack_serial, nack_version, nack_reason, nack_detail, nack_at)
select g.host_id, g.service_id, 'nacked', $7, g.serial, g.version, g.reason, g.detail, $7
from unnest($1::text[], $2::bigint[], $3::bigint[], $4::bigint[], $5::text[], $6::text[])
    as g (host_id, service_id, serial, version, reason, detail)
join hosts h on h.host_id = g.host_id and h.released_at is null
join services s on s.id = g.service_id
order by g.host_id, g.service_id
on conflict (host_id, service_id) do update set nack_serial = excluded.nack_serial, nack_version = excluded.nack_version,
    nack_reason = excluded.nack_reason, nack_detail = excluded.nack_detail, nack_at = excluded.nack_at

-- name: store_heartbeats
with held as materialized (
    select host_id from hosts where host_id = any($1::text[]) and released_at is null order by host_id for no key update
)
update hosts h set seen_at = $6, every = g.every, heartbeat = g.body, heartbeat_serial = g.serial, runs = coalesce(g.runs, h.runs),
    addresses = case when g.addresses = '' then h.addresses else string_to_array(g.addresses, e'\n') end
from held join unnest($1::text[], $2::double precision[], $3::bytea[], $4::bigint[], $5::text[], $7::bytea[])
    as g (host_id, every, body, serial, addresses, runs) using (host_id)
where h.host_id = held.host_id

-- name: store_reports
insert into reports as r (host_id, service_id, state, version, digest, tables_digest, deadline, since, cgroups, conflicts, drift,
    candidate, candidate_since)
select g.host_id, g.service_id, g.state, g.version, g.digest, g.tables_digest, g.deadline, $11,
    string_to_array(g.cgroups, e'\n'), string_to_array(g.conflicts, e'\n'), g.drift, g.candidate, $11
from unnest($1::text[], $2::bigint[], $3::text[], $4::bigint[], $5::text[], $6::text[], $7::bigint[], $8::text[], $9::text[],
    $10::boolean[], $12::text[])
    as g (host_id, service_id, state, version, digest, tables_digest, deadline, cgroups, conflicts, drift, candidate)
join hosts h on h.host_id = g.host_id and h.released_at is null
join services s on s.id = g.service_id
order by g.host_id, g.service_id
on conflict (host_id, service_id) do update set state = excluded.state, version = excluded.version, digest = excluded.digest,
    tables_digest = excluded.tables_digest, deadline = excluded.deadline, cgroups = excluded.cgroups,
    conflicts = excluded.conflicts, drift = excluded.drift, candidate = excluded.candidate,
    candidate_since = case when r.candidate is distinct from excluded.candidate then excluded.since else r.candidate_since end,
    since = case when r.digest is distinct from excluded.digest or r.state <> excluded.state then excluded.since else r.since end

-- name: awaiting
select r.host_id, r.service_id, r.ack_serial, r.ack_version, r.ack_digest, r.ack_at
from reports r join hosts h using (host_id)
where r.awaits and h.released_at is null and r.confirmed_at is null and r.host_id = any($1::text[])

-- The processes that answered as these hosts, as the heartbeats that are stored say.
-- name: runs_of
select host_id, runs from hosts where host_id = any($1::text[]) and runs is not null

-- name: heartbeats_of
select host_id, heartbeat from hosts where host_id = any($1::text[]) and heartbeat is not null

-- name: confirmed_lately
select r.host_id, r.service_id, r.ack_serial, r.ack_version, r.ack_digest, r.ack_at
from reports r join hosts h using (host_id) where r.awaits and h.released_at is null and r.confirmed_at > $1

-- name: confirmed
with held as materialized (
    select r.host_id, r.service_id from reports r join unnest($1::text[], $2::bigint[]) as g (host_id, service_id) using (host_id, service_id)
    order by r.host_id, r.service_id for no key update of r
)
update reports r set confirmed_at = $3 from held where r.host_id = held.host_id and r.service_id = held.service_id

-- Hosts that report a matched cgroup of a service and have no snapshot of it, from a pair on: by pages.
-- name: joiners
select r.host_id, r.service_id from reports r
join services s on s.id = r.service_id
join hosts h on h.host_id = r.host_id and h.released_at is null
where cardinality(r.cgroups) > 0 and s.host_labels <@ h.labels and (s.stable is not null or s.open_until > $1)
and not exists (select 1 from assignments a where a.host_id = r.host_id and a.service_id = r.service_id)
and not exists (select 1 from withheld w where w.host_id = r.host_id and w.service_id = r.service_id)
and (r.service_id, r.host_id) > ($2::bigint, $3::text) order by r.service_id, r.host_id limit $4

-- name: renewal_due
select 1 as due from assignments a join contents c on c.service_id = a.service_id and c.version = a.version
where a.renewed and (a.lease_until - $1::bigint) * 2 <= least(c.ttl_seconds, $2::bigint) limit 1

-- name: dirty_count
select count(*) filter (where dirty) as dirty, count(*) filter (where left_out <> '') as overfull
from hosts where released_at is null

-- name: add_proposal
insert into proposals (created_at, created_by, asked, flows, flows_digest, body) values ($1, $2, $3, $4, $5, $6) returning id

-- name: proposals
select id, created_at, created_by, asked, flows, flows_digest,
       (body ->> 'coverage')::float8 as coverage, (body ->> 'unseen')::float8 as unseen,
       jsonb_array_length(body -> 'groups') as groups,
       (select count(*) from jsonb_array_elements(body -> 'rules') r where r ->> 'held' = '') as rules
from proposals where id < $1 order by id desc limit $2

-- name: proposal
select id, created_at, created_by, asked, flows, flows_digest, body from proposals where id = $1

-- The last proposal of a scope.
-- name: proposal_before
select id from proposals
where coalesce(asked -> 'scope', '[]') = $1::jsonb order by id desc limit 1

-- name: add_plan
insert into plans (created_at, created_by, proposal, policy, asked, inventory_digest, flows_digest, digest, body, inputs, author)
values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11) returning id

-- name: is_proposal
select 1 as found from proposals where id = $1

-- name: is_plan
select 1 as found from plans where id = $1

-- name: plan_inputs
select created_at, created_by, policy, asked, flows_digest, digest, inputs from plans where id = $1

-- name: plans
select id, created_at, created_by, proposal, digest, approved_by, jsonb_array_length(body -> 'services') as services,
       (body #>> '{replay,blocked}')::bigint as would_block, jsonb_array_length(body -> 'held') as held
from plans where id < $1 order by id desc limit $2

-- name: plan
select id, created_at, created_by, proposal, policy, asked, inventory_digest, flows_digest, digest, body, approved_by, approved_at,
    accepted, author, approver, inputs
from plans where id = $1

-- name: approve_plan
update plans set approved_by = $2, approved_at = $3, approver = $4 where id = $1

-- name: all_running
select r.service_id, r.host_id from reports r join hosts h using (host_id) join services s on s.id = r.service_id
where h.released_at is null and cardinality(r.cgroups) > 0 and s.host_labels <@ h.labels

-- name: host_places
select h.host_id, h.labels, a.addresses from hosts h join host_addresses a using (host_id) where h.released_at is null order by host_id

-- Which addresses a host reports that others report too, and who does; null: of all hosts.
-- name: address_conflicts
select address, hosts from shared_addresses where $1::text is null or $1 = any(hosts) order by address limit 10000

-- How many addresses several hosts report.
-- name: shared_address_count
select count(*) as addresses from shared_addresses

-- What is in force of each service: the promoted version, else the newest that a host is to run.
-- name: in_force
select s.name, c.version, c.snapshot from services s
join contents c on c.service_id = s.id
 and c.version = coalesce(s.stable, (select max(a.version) from assignments a where a.service_id = s.id))

-- name: put_candidates
insert into candidates as c (service_id, host_id, version) select $1, h, $3 from unnest($2::text[]) as given (h)
on conflict (host_id, service_id) do update set version = excluded.version where c.version <> excluded.version returning host_id

-- name: end_candidates
delete from candidates where service_id = $1 and ($2::text[] is null or host_id = any($2)) returning host_id

-- name: end_candidates_of_host
delete from candidates where host_id = $1

-- name: candidates
select host_id, version from candidates where service_id = $1 order by host_id

-- name: candidates_of
select k.host_id, k.service_id, s.name, s.selectors, k.version, c.digest
from candidates k join services s on s.id = k.service_id join contents c on c.service_id = k.service_id and c.version = k.version
where k.host_id = any($1::text[])

-- name: add_rollout
insert into rollouts (plan, created_at, created_by, stage, run, parts) values ($1, $2, $3, $4, $5, $6) returning id

-- name: rollout
select id, plan, created_at, created_by, stage, run, parts, looked, looked_at from rollouts where id = $1

-- name: rollouts
select id, plan, created_at, created_by, stage, run, parts, looked, looked_at from rollouts where id < $1 order by id desc limit $2

-- name: live_rollouts
select id, plan, created_at, created_by, stage, run, parts, looked, looked_at from rollouts
where stage in ('observe', 'canary', 'waves', 'promoted') order by id

-- name: lock_rollout
select id, plan, created_at, created_by, stage, run, parts, looked, looked_at from rollouts where id = $1 for update

-- name: put_rollout_run
update rollouts set stage = $2, run = $3 where id = $1

-- A look that found nothing to do; one that was overtaken by a step leaves no trace.
-- name: looked
update rollouts set run = $3, looked = $4, looked_at = $5 where id = $1 and run -> 'since' = $2::jsonb -> 'since'
 and stage = $2::jsonb ->> 'stage' and run -> 'paused' = $2::jsonb -> 'paused'

-- name: add_rollout_step
insert into rollout_steps (rollout, at, stage, turn, who, reason, did) values ($1, $2, $3, $4, $5, $6, $7)

-- name: rollout_steps
select at, stage, turn, who, reason, did from rollout_steps where rollout = $1 order by at, stage

-- name: begun_since
select count(*) as begun from rollouts where created_at > $1

-- name: rollout_of_service
select id, stage from rollouts where stage in ('observe', 'canary', 'waves')
 and exists (select 1 from jsonb_array_elements(parts) p where (p ->> 'service_id')::bigint = $1) order by id limit 1

-- name: accept_plan
update plans set accepted = $2 where id = $1

-- name: ask_preflight
update assignments set preflight = $3 where service_id = $1 and host_id = any($2::text[])

-- What each host of a stage says: when it was heard, whether it has its newest manifest, and what it has of these services.
-- name: told_by
select h.host_id, (select extract(epoch from max(s.last_at))::float8 from sources s where s.host_id = h.host_id and s.boot_id not like 'http:%') as told_at,
    h.seen_at, h.heartbeat_serial, h.serial, h.released_at, r.service_id, r.state, r.version, r.digest, r.tables_digest, r.candidate,
    r.since, r.candidate_since, cardinality(r.cgroups) as cgroups, r.awaits, r.confirmed_at, r.ack_digest, r.nack_serial, r.ack_serial, r.nack_version, r.nack_reason,
    r.nack_detail, r.nack_at
from hosts h left join reports r on r.host_id = h.host_id and r.service_id = any($2::bigint[])
where h.host_id = any($1::text[]) order by h.host_id, r.service_id

-- name: assigned_of
select host_id, service_id, version, lease_until, renewed from assignments where service_id = any($1::bigint[]) and host_id = any($2::text[])

-- name: renew_trial
update assignments set lease_until = $4 where service_id = $1 and version = $2 and host_id = any($3::text[])

-- Initiations of a turn that were not blocked: reports of flows up to the next whole minute, whole minutes after it.
-- name: exposure
select bounded(coalesce(sum(n), 0)) as flows from (
    select sum(f.connections) as n from flows f join sources s on s.id = f.source
    where f.first_at >= to_timestamp($3::float8) and f.time >= to_timestamp($3::float8) and f.time < to_timestamp(ceil($3::float8 / 60) * 60)
      and f.service_id = any($1::bigint[]) and s.host_id = any($2::text[]) and f.verdict <> 'blocked'
    union all
    select sum(m.connections) from flow_minutes m
    where m.minute >= to_timestamp(ceil($3::float8 / 60) * 60) and m.service_id = any($1::bigint[]) and m.host_id = any($2::text[])
      and m.verdict <> 'blocked'
) as parts

-- Initiations that these snapshots denied, or would have, by kind.
-- name: denied
select s.host_id, e.service_id, e.body #>> '{event,direction}' as direction, (e.body #>> '{event,proto}')::integer as proto,
    coalesce((e.body #>> (case e.body #>> '{event,direction}' when 'egress' then '{event,peer_port}' else '{event,local_port}' end)::text[])::integer, 0) as port,
    coalesce(e.body #>> '{context,peer_host}', '') as peer_host,
    coalesce((e.body #>> '{context,peer_service_id}')::bigint, 0) as peer_service_id,
    case when coalesce(e.body #>> '{context,peer_host}', '') = '' then host(e.peer) else '' end as peer,
    coalesce(e.body #>> '{context,peer_class}', '') as peer_class,
    count(*) as denied, min(e.body #>> '{event,reason}') as reason, extract(epoch from min(e.time))::float8 as first_at
from events e join sources s on s.id = e.source
where e.kind = 'verdict' and e.time >= to_timestamp($3::float8) and s.host_id = any($2::text[])
  and e.body #>> '{event,digest}' = any($1::text[]) and s.boot_id not like 'http:%'
group by 1, 2, 3, 4, 5, 6, 7, 8, 9 order by denied, first_at limit 10000

-- Which of these kinds were seen, answered and not blocked, between $10 and $11: by whole minutes, what is left of the last one, and by
-- address who is outside. Three semi-joins, each of which reads its rows once.
-- name: seen_before
with k as (
    select * from unnest($1::integer[], $2::bigint[], $3::text[], $4::integer[], $5::integer[], $6::bigint[], $7::text[], $8::text[],
        $9::text[]) as k (n, service_id, direction, proto, port, peer_service_id, peer_host, peer, peer_class)
)
select k.n from k where exists (
    select 1 from flow_minutes m where m.minute >= to_timestamp($10::float8) and m.minute < date_trunc('minute', to_timestamp($11::float8))
      and m.service_id = k.service_id and m.direction = k.direction and m.proto = k.proto and m.port = k.port
      and m.verdict <> 'blocked' and m.packets_in > 0 and m.packets_out > 0
      and case when k.peer_service_id > 0 then m.peer_service_id = k.peer_service_id
               when k.peer_host <> '' then m.peer_host = k.peer_host
               else k.direction = 'ingress' and m.peer_host = '' and m.peer_class = k.peer_class end)
union
select k.n from k where exists (
    select 1 from flows f where f.time >= date_trunc('minute', to_timestamp($11::float8)) and f.time < to_timestamp($11::float8)
      and f.service_id = k.service_id and f.direction = k.direction and f.proto = k.proto and f.port = k.port
      and f.verdict <> 'blocked' and f.packets_in > 0 and f.packets_out > 0
      and case when k.peer_service_id > 0 then f.peer_service_id = k.peer_service_id
               when k.peer_host <> '' then f.peer_host = k.peer_host
               else k.direction = 'ingress' and f.peer_host = '' and f.peer_class = k.peer_class end)
union
select k.n from k where exists (
    select 1 from flows f where f.time >= to_timestamp($10::float8) and f.time < to_timestamp($11::float8)
      and f.service_id = k.service_id and f.direction = k.direction and f.proto = k.proto and f.port = k.port
      and f.verdict <> 'blocked' and f.packets_in > 0 and f.packets_out > 0 and f.peer_host = '' and f.peer = nullif(k.peer, '')::inet)

-- name: unheard
select o.host_id, o.others from (
    select m.peer_host as host_id, bounded(sum(m.connections)) as others from flow_minutes m
    where m.minute >= to_timestamp(ceil($3::float8 / 60) * 60) and m.minute < to_timestamp($5::float8) and m.peer_host = any($2::text[])
      and m.peer_service_id = any($1::bigint[]) and m.verdict <> 'blocked' group by 1) as o
where o.others >= $4 and not exists (
    select 1 from flow_minutes m where m.minute >= to_timestamp(ceil($3::float8 / 60) * 60) and m.host_id = o.host_id)

-- name: plan_accepted
select accepted from plans where id = $1

-- name: promoted_later
select id from rollouts where id > $1 and stage in ('promoted', 'superseded')
 and exists (select 1 from jsonb_array_elements(parts) p where (p ->> 'service_id')::bigint = any($2::bigint[])) order by id limit 1

-- name: suspect
insert into suspicions values ($1, $2, $3, $4, $5)
on conflict (host_id, finding) do update set detail = excluded.detail, said_at = excluded.said_at, said_by = excluded.said_by

-- name: trust
delete from suspicions where host_id = $1 and finding = $2

-- name: suspicions
select host_id, finding, detail, said_at, said_by from suspicions order by host_id, finding

-- name: hosts_known
select host_id from hosts where host_id = any($1::text[])

-- name: say_health
insert into service_health values ($1, $2, $3, $4, $5, $6)
on conflict (service_id, host_id) do update set healthy = excluded.healthy, detail = excluded.detail, said_at = excluded.said_at,
    said_by = excluded.said_by

-- What was said since the rollout enforces something.
-- name: sick
select service_id, host_id, detail, said_by from service_health
where service_id = any($1::bigint[]) and not healthy
 and said_at >= (select min(at) from rollout_steps where rollout = $2 and stage in ('canary', 'waves', 'promoted'))
 and (host_id = '' or host_id = any($3::text[]))
order by service_id, host_id

-- name: put_rollout_parts
update rollouts set parts = $2, run = $3 where id = $1

-- The newest rollout that brought this version of this service.
-- name: brought
select id, plan, created_at, created_by, stage, run, parts, looked, looked_at from rollouts where stage in ('promoted', 'superseded')
 and exists (select 1 from jsonb_array_elements(parts) p where (p ->> 'service_id')::bigint = $1 and (p ->> 'version')::bigint = $2)
order by id desc limit 1
