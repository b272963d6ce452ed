-- name: known_hosts
select host_id, labels, addresses from hosts where released_at is null order by host_id

-- name: known_services
select id as service_id, name, selectors, host_labels from services order by id

-- name: known_listeners
select host_id, proto, address, port, service_id, cgroup from listeners

-- name: known_inventories
select body from inventories order by host_id

-- name: source
select id, seen::text as seen from sources where host_id = $1 and boot_id = $2

-- name: add_source
insert into sources (host_id, boot_id) values ($1, $2) on conflict (host_id, boot_id) do nothing returning id

-- The guard makes a second writer, or a mark that another process moved, a conflict instead of a second row.
-- name: mark
update sources s set seen = s.seen + n.seen::int8multirange, lost = s.lost || n.lost, offset_ns = n.offset_ns,
                     last_at = now()
from unnest($1::integer[], $2::text[], $3::jsonb[], $4::bigint[]) as n(id, seen, lost, offset_ns)
where s.id = n.id and not s.seen && n.seen::int8multirange returning s.id

-- name: roll_up
insert into flow_minutes as m
select * from unnest($1::timestamptz[], $2::text[], $3::bigint[], $4::text[], $5::text[], $6::bigint[], $7::text[],
                     $8::smallint[], $9::integer[], $10::text[], $11::text[], $12::bigint[], $13::bigint[],
                     $14::bigint[], $15::bigint[], $16::bigint[], $17::bigint[])
on conflict (minute, host_id, service_id, direction, peer_host, peer_service_id, peer_class, proto, port, verdict,
             reason)
do update set flows = m.flows + excluded.flows, connections = m.connections + excluded.connections,
              packets_out = m.packets_out + excluded.packets_out, packets_in = m.packets_in + excluded.packets_in,
              bytes_out = m.bytes_out + excluded.bytes_out, bytes_in = m.bytes_in + excluded.bytes_in

-- name: listen
insert into listeners
select * from unnest($1::text[], $2::smallint[], $3::text[], $4::integer[], $5::bigint[], $6::text[], $7::text[],
                     $8::timestamptz[])
on conflict (host_id, proto, address, port)
do update set service_id = excluded.service_id, cgroup = excluded.cgroup, path = excluded.path, since = excluded.since

-- name: unlisten
delete from listeners l using unnest($1::text[], $2::smallint[], $3::text[], $4::integer[]) as n(host_id, proto, address, port)
where l.host_id = n.host_id and l.proto = n.proto and l.address = n.address and l.port = n.port

-- name: inventory
select digest, body from inventories where host_id = $1

-- name: keep_inventory
insert into inventories values ($1, $2, $3, $4)
on conflict (host_id) do update set digest = excluded.digest, taken_at = excluded.taken_at, body = excluded.body

-- name: forget_packages
delete from packages where host_id = $1

-- name: add_packages
insert into packages
select $1, * from unnest($2::text[], $3::text[], $4::text[], $5::text[], $6::text[], $7::text[], $8::text[])

-- name: add_package_changes
insert into package_changes
select $1, $2, * from unnest($3::boolean[], $4::text[], $5::text[], $6::text[], $7::text[], $8::text[])

-- name: partitions
select c.relname as name, pg_get_expr(c.relpartbound, c.oid) as bound
from pg_inherits i join pg_class c on c.oid = i.inhrelid join pg_class p on p.oid = i.inhparent
where p.relname = $1 order by c.relname

-- name: forget_minutes
delete from flow_minutes where minute < $1

-- name: forget_sources
delete from sources where last_at < $1 returning id

-- name: size
select (select count(*) from sources) as sources, pg_database_size(current_database()) as bytes
