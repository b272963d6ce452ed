-- name: known_hosts
select h.host_id, h.labels, a.addresses from hosts h join host_addresses a using (host_id) where h.released_at is null order by host_id

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
update sources s set seen = s.seen + n.seen::int8multirange, offset_ns = n.offset_ns,
                     last_at = now(),
                     lost = case when (select count(*) from jsonb_object_keys(s.lost || n.lost)) > 64 then n.lost
                                 else s.lost || n.lost end
from unnest($1::integer[], $2::text[], $3::jsonb[], $4::bigint[]) as n(id, seen, lost, offset_ns)
where s.id = n.id and not s.seen && n.seen::int8multirange returning s.id

-- name: roll_up
insert into flow_minutes as m
select * from unnest($1::timestamptz[], $2::text[], $3::bigint[], $4::text[], $5::text[], $6::bigint[], $7::text[],
                     $8::smallint[], $9::integer[], $10::text[], $11::text[], $12::bigint[], $13::bigint[],
                     $14::bigint[], $15::bigint[], $16::bigint[], $17::bigint[])
on conflict (minute, host_id, service_id, direction, peer_host, peer_service_id, peer_class, proto, port, verdict,
             reason)
do update set flows = bounded(m.flows::numeric + excluded.flows), connections = bounded(m.connections::numeric + excluded.connections),
              packets_out = bounded(m.packets_out::numeric + excluded.packets_out), packets_in = bounded(m.packets_in::numeric + excluded.packets_in),
              bytes_out = bounded(m.bytes_out::numeric + excluded.bytes_out), bytes_in = bounded(m.bytes_in::numeric + excluded.bytes_in)

-- name: listen
insert into listeners
select * from unnest($1::text[], $2::smallint[], $3::text[], $4::integer[], $5::bigint[], $6::text[], $7::text[],
                     $8::timestamptz[])
on conflict (host_id, proto, address, port)
do update set service_id = excluded.service_id, cgroup = excluded.cgroup, path = excluded.path, since = excluded.since

-- name: own
update listeners l set service_id = n.service_id
from unnest($1::text[], $2::smallint[], $3::text[], $4::integer[], $5::bigint[]) as n(host_id, proto, address, port, service_id)
where l.host_id = n.host_id and l.proto = n.proto and l.address = n.address and l.port = n.port

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

-- name: partitioned
select relname::text as name from pg_class where relkind = 'p' and relname = any($1::text[])

-- name: add_day
select facts_add_day($1, $2)

-- name: drop_day
select facts_drop_day($1, $2)

-- name: owns
select pg_has_role(current_user, relowner, 'usage') as owns from pg_class
where relname = 'flows' and relnamespace = current_schema()::regnamespace

-- name: forget_minutes
delete from flow_minutes where minute < $1

-- name: forget_sources
delete from sources where last_at < $1 returning id

-- name: size
select (select count(*) from sources) as sources, pg_database_size(current_database()) as bytes

-- Filters are arrays: null wants everything, an empty "not" excludes nothing. Ends are named by service, host or
-- address; `from` is the end that initiated.
-- name: flows
select v.time, v.host_id, v.source, v.seq, v.direction, v.verdict, v.reason, v.proto, host(v.local) as local,
       host(v.peer) as peer, v.port, v.service_id, v.service, v.peer_service_id, v.peer_service, v.peer_host,
       v.peer_class, v.cgroup, v.path, v.package, v.first_at, v.connections, v.packets_out, v.packets_in,
       v.bytes_out, v.bytes_in
from flows_view v,
     lateral (select array[v.service, v.host_id, host(v.local)] as here,
                     array[v.peer_service, v.peer_host, host(v.peer)] as there) as ends,
     lateral (select case v.direction when 'egress' then here else there end as client,
                     case v.direction when 'egress' then there else here end as server) as sides
where v.time >= $1 and v.time < $2
  and ($3::timestamptz is null or case when $6 then (v.time, v.source, v.seq) > ($3, $4, $5)
                                       else (v.time, v.source, v.seq) < ($3, $4, $5) end)
  and ($7::text[] is null or client && $7) and not coalesce(client && $8::text[], false)
  and ($9::text[] is null or server && $9) and not coalesce(server && $10::text[], false)
  and ($11::text[] is null or v.service = any($11) or v.peer_service = any($11))
  and not (v.service = any($12::text[]) or v.peer_service = any($12))
  and ($13::text[] is null or v.host_id = any($13)) and v.host_id <> all($14::text[])
  and ($15::inet[] is null or v.peer <<= any($15)) and not coalesce(v.peer <<= any($16::inet[]), false)
  and ($17::integer[] is null or v.port = any($17)) and v.port <> all($18::integer[])
  and ($19::smallint[] is null or v.proto = any($19)) and v.proto <> all($20::smallint[])
  and ($21::text[] is null or v.verdict = any($21)) and v.verdict <> all($22::text[])
  and ($23::text[] is null or v.reason = any($23)) and v.reason <> all($24::text[])
  and ($25::text[] is null or v.direction = any($25)) and v.direction <> all($26::text[])
  and ($27::text[] is null or v.path = any($27)) and v.path <> all($28::text[])
  and ($29::text[] is null or v.peer_class = any($29)) and v.peer_class <> all($30::text[])
order by case when $6 then v.time end, case when $6 then v.source end, case when $6 then v.seq end,
         v.time desc, v.source desc, v.seq desc
limit $31

-- name: events
select v.time, v.host_id, v.source, v.seq, v.kind, v.service_id, v.service, v.pid, v.path, v.user_name,
       host(v.peer) as peer, v.body
from events_view v
where v.time >= $1 and v.time < $2
  and ($3::timestamptz is null or case when $6 then (v.time, v.source, v.seq) > ($3, $4, $5)
                                       else (v.time, v.source, v.seq) < ($3, $4, $5) end)
  and ($7::text[] is null or v.kind = any($7)) and v.kind <> all($8::text[])
  and ($9::text[] is null or v.host_id = any($9)) and v.host_id <> all($10::text[])
  and ($11::text[] is null or v.service = any($11)) and v.service <> all($12::text[])
  and ($13::text[] is null or v.path = any($13)) and v.path <> all($14::text[])
  and ($15::text[] is null or v.user_name = any($15)) and v.user_name <> all($16::text[])
  and ($17::inet[] is null or v.peer <<= any($17)) and not coalesce(v.peer <<= any($18::inet[]), false)
  and ($19::bigint[] is null or v.pid = any($19)) and coalesce(v.pid, -1) <> all($20::bigint[])
order by case when $6 then v.time end, case when $6 then v.source end, case when $6 then v.seq end,
         v.time desc, v.source desc, v.seq desc
limit $21

-- Who talks to whom, as minutes were added up: one line for each pair, port and verdict.
-- name: flow_summary
select case m.direction when 'egress' then coalesce(a.name, m.host_id) else coalesce(b.name, nullif(m.peer_host, ''), m.peer_class) end as client,
       case m.direction when 'egress' then coalesce(b.name, nullif(m.peer_host, ''), m.peer_class) else coalesce(a.name, m.host_id) end as server,
       m.proto, m.port, m.verdict, m.reason, bounded(sum(m.flows)) as flows, bounded(sum(m.connections)) as connections,
       bounded(sum(m.bytes_out::numeric + m.bytes_in)) as bytes, min(m.minute) as first_minute, max(m.minute) as last_minute
from flow_minutes m left join services a on a.id = m.service_id left join services b on b.id = m.peer_service_id
where m.minute >= $1 and m.minute < $2
group by 1, 2, 3, 4, 5, 6 order by flows desc, 1, 2, 3, 4 limit $3

-- The same for long times, by whole hours.
-- name: flow_summary_hours
select case m.direction when 'egress' then coalesce(a.name, m.host_id) else coalesce(b.name, nullif(m.peer_host, ''), m.peer_class) end as client,
       case m.direction when 'egress' then coalesce(b.name, nullif(m.peer_host, ''), m.peer_class) else coalesce(a.name, m.host_id) end as server,
       m.proto, m.port, m.verdict, m.reason, bounded(sum(m.flows)) as flows, bounded(sum(m.connections)) as connections,
       bounded(sum(m.bytes_out::numeric + m.bytes_in)) as bytes, min(m.hour) as first_minute, max(m.hour) as last_minute
from flow_hours m left join services a on a.id = m.service_id left join services b on b.id = m.peer_service_id
where m.hour >= date_trunc('hour', $1::timestamptz) and m.hour < $2
group by 1, 2, 3, 4, 5, 6 order by flows desc, 1, 2, 3, 4 limit $3

-- name: hosts_seen
select h.host_id, h.labels, h.addresses, s.last_at, s.lost, s.offset_ns, i.digest as inventory, i.taken_at,
       (select count(*) from packages p where p.host_id = h.host_id) as packages
from hosts h
left join lateral (select last_at, lost, offset_ns from sources where host_id = h.host_id and boot_id not like 'http:%'
                   order by last_at desc limit 1) s on true
left join inventories i on i.host_id = h.host_id
where h.released_at is null order by h.host_id

-- name: packages
select host_id, type, name, version, arch, source, source_version, place from packages
where ($1::text is null or host_id = $1) and ($2::text is null or name = $2) and ($3::text is null or type = $3)
  and ($4::text is null or (host_id, type, name, version, arch, place) > ($4, $5, $6, $7, $8, $9))
order by host_id, type, name, version, arch, place limit $10

-- name: package_changes
select time, host_id, added, type, name, version, arch, place from package_changes
where ($1::text is null or host_id = $1) and time >= $2 order by time desc, host_id, name limit $3

-- Where services run, by what hosts report of cgroups, or by who listens there; the version is what the kernel holds.
-- name: parties
select s.name, s.id as service_id, h.host_id, a.addresses,
       case when r.state = 'panicked' then null else r.version end as version
from services s
join (select host_id, service_id from reports where cgroups <> '{}' or version is not null
      union select host_id, service_id from listeners where service_id is not null) p on p.service_id = s.id
join hosts h on h.host_id = p.host_id and h.released_at is null
join host_addresses a on a.host_id = h.host_id
left join reports r on r.host_id = h.host_id and r.service_id = s.id
order by s.id, h.host_id limit 20000

-- name: service_ports
select distinct service_id, proto::int as proto, port from listeners
where service_id is not null and address not like '127.%' and address <> '::1' order by 1, 2, 3 limit 100000

-- name: content_payload
select payload from contents where service_id = $1 and version = $2

-- name: service_named
select id from services where name = $1

-- Which of these names are those of hosts, also of hosts that are gone and whose events are stored still, and of services.
-- name: names_known
select 'host' as kind, host_id as name from hosts where host_id = any($1::text[])
union select 'host', host_id from sources where host_id = any($1)
union select 'service', name from services where name = any($1)

-- name: names
(select 'host' as kind, host_id as name from hosts where released_at is null order by host_id limit 10000)
union all (select 'service', name from services order by name limit 10000)

-- What the graph is filled from when it is empty: what is stored so far, added up. Services -1: none.
-- name: graph_flows
select s.host_id, f.service_id, coalesce(a.name, 'service-' || f.service_id, '') as service, f.direction, f.peer_service_id,
       coalesce(b.name, 'service-' || f.peer_service_id, '') as peer_service, f.peer_host, coalesce(host(f.peer), '') as peer,
       f.peer_class, f.proto::int as proto, f.port,
       bounded(sum(case when f.verdict = 'blocked' or (f.proto = 6 and f.direction = 'egress' and f.packets_in = 0) then 0
                        else greatest(1, f.connections) end)) as allowed,
       bounded(sum(case when f.verdict = 'blocked' then greatest(1, f.connections) else 0 end)) as blocked,
       bounded(sum(f.bytes_in::numeric + f.bytes_out)) as bytes, (extract(epoch from max(f.time)) * 1000000000)::bigint as last_ns
from flows f join sources s on s.id = f.source
left join services a on a.id = f.service_id left join services b on b.id = f.peer_service_id
where f.time < $1 and f.peer_class not in ('own', 'loopback') and (f.direction = 'egress' or f.peer_host = '' or f.verdict = 'blocked')
group by 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11 limit 500000

-- name: graph_refusals
select s.host_id, e.service_id, coalesce(a.name, 'service-' || e.service_id, '') as service,
       'egress' as direction, (e.body #>> '{context,peer_service_id}')::bigint as peer_service_id,
       coalesce(e.body #>> '{context,peer_service}', '') as peer_service, coalesce(e.body #>> '{context,peer_host}', '') as peer_host,
       coalesce(host(e.peer), '') as peer, coalesce(e.body #>> '{context,peer_class}', '') as peer_class,
       (e.body #>> '{event,proto}')::int as proto,
       coalesce(e.body #>> '{event,peer_port}', '0')::int as port,
       0::bigint as allowed, count(*) as blocked, 0::bigint as bytes,
       (extract(epoch from max(e.time)) * 1000000000)::bigint as last_ns
from events e join sources s on s.id = e.source left join services a on a.id = e.service_id
where e.time < $1 and e.kind = 'verdict' and e.body #>> '{event,verdict}' = 'blocked'
  and e.body #>> '{event,direction}' = 'egress'
group by 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11 limit 500000

-- name: graph_programs
select s.host_id, e.service_id, coalesce(a.name, 'service-' || e.service_id, '') as service, e.path, count(*) as runs,
       (extract(epoch from max(e.time)) * 1000000000)::bigint as last_ns
from events e join sources s on s.id = e.source left join services a on a.id = e.service_id
where e.time < $1 and e.kind = 'exec' group by 1, 2, 3, 4 limit 500000

-- name: graph_listeners
select l.host_id, l.service_id, coalesce(a.name, 'service-' || l.service_id, '') as service, l.address, l.proto::int as proto,
       l.port, (extract(epoch from l.since) * 1000000000)::bigint as last_ns
from listeners l left join services a on a.id = l.service_id

-- What was let through, each call once: by the caller's host, or by the callee's where the caller is no host of ours. An unanswered SYN
-- is no call. Summed up by slots of $3 seconds from $1 on.
-- name: recorded_flows
select floor(extract(epoch from f.time - $4::timestamptz) / $3::float8)::int as slot, s.host_id, coalesce(a.name, '') as service,
       f.direction = 'egress' as calls, f.peer_host, coalesce(b.name, '') as peer_service,
       case when f.peer_host = '' then coalesce(host(f.peer), '') else '' end as peer, f.proto::int as proto, f.port, f.path,
       bounded(sum(greatest(1, f.connections))) as connections
from flows f join sources s on s.id = f.source
left join services a on a.id = f.service_id left join services b on b.id = f.peer_service_id
where f.time >= $1 and f.time < $2 and f.verdict <> 'blocked' and f.peer_class not in ('own', 'loopback')
  and not (f.proto = 6 and f.direction = 'egress' and f.packets_in = 0) and (f.direction = 'egress' or f.peer_host = '')
group by 1, 2, 3, 4, 5, 6, 7, 8, 9, 10 order by 1, 2, 3, 4, 5, 6, 7, 8, 9, 10 limit $5

-- At which addresses two hosts talked: the caller's and the callee's, as the caller saw them.
-- name: recorded_addresses
select distinct s.host_id, f.peer_host, host(f.local) as local, host(f.peer) as peer
from flows f join sources s on s.id = f.source
where f.time >= $1 and f.time < $2 and f.verdict <> 'blocked' and f.peer_class not in ('own', 'loopback')
  and not (f.proto = 6 and f.packets_in = 0) and f.direction = 'egress' and f.peer_host <> '' and f.local is not null and f.peer is not null
order by 1, 2, 3, 4 limit 1000000

-- Which service of a host answered on a port, by the host's own word: callers do not know it of a listener that is new. One name, or none.
-- name: recorded_servers
select s.host_id, f.proto::int as proto, f.port, min(a.name) as service
from flows f join sources s on s.id = f.source join services a on a.id = f.service_id
where f.time >= $1 and f.time < $2 and f.direction = 'ingress' and f.verdict <> 'blocked'
group by 1, 2, 3 having count(distinct a.name) = 1 limit 1000000
