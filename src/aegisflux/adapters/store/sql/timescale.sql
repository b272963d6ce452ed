-- name: timescale_available
select installed_version, default_version from pg_available_extensions where name = 'timescaledb'

-- name: timescale_license
select current_setting('timescaledb.license', true)

-- name: table_kind
select relkind::text from pg_class where relname = $1 and relnamespace = current_schema()::regnamespace

-- name: hours_adopted
select count(*) from timescaledb_information.continuous_aggregates where view_name = 'flow_hours'

-- name: hyper_flows
create table flows_hyper (like flows including defaults);
select create_hypertable('flows_hyper', 'time', chunk_time_interval => interval '1 day');
insert into flows_hyper select * from flows;
alter table flows rename to flows_native;
alter table flows_hyper rename to flows;
create or replace view flows_view as
    select f.time, s.host_id, f.seq, f.direction, f.verdict, f.reason, f.proto, f.local, f.peer, f.port,
           f.service_id, coalesce(a.name, '') as service, f.peer_service_id, coalesce(b.name, '') as peer_service,
           f.peer_host, f.peer_class, f.cgroup, f.path, f.package, f.first_at, f.connections,
           f.packets_out, f.packets_in, f.bytes_out, f.bytes_in, f.source
    from flows f join sources s on s.id = f.source
    left join services a on a.id = f.service_id left join services b on b.id = f.peer_service_id;
drop table flows_native;
alter table flows set (timescaledb.compress, timescaledb.compress_segmentby = 'source', timescaledb.compress_orderby = 'time desc');
select add_compression_policy('flows', interval '2 days', if_not_exists => true);

-- name: hyper_events
create table events_hyper (like events including defaults);
select create_hypertable('events_hyper', 'time', chunk_time_interval => interval '1 day');
insert into events_hyper select * from events;
alter table events rename to events_native;
alter table events_hyper rename to events;
create or replace view events_view as
    select e.time, s.host_id, e.seq, e.kind, e.service_id, coalesce(a.name, '') as service, e.pid, e.path,
           e.user_name, e.peer, e.body, e.source
    from events e join sources s on s.id = e.source left join services a on a.id = e.service_id;
drop table events_native;
alter table events set (timescaledb.compress, timescaledb.compress_segmentby = 'source', timescaledb.compress_orderby = 'time desc');
select add_compression_policy('events', interval '2 days', if_not_exists => true);

-- The refresh reaches back to the first minute: it looks only at hours whose minutes changed, and hosts that were
-- away bring minutes of long ago.
-- name: hyper_hours
select create_hypertable('flow_minutes', 'minute', chunk_time_interval => interval '7 days', migrate_data => true);
drop view flow_hours;
create materialized view flow_hours with (timescaledb.continuous, timescaledb.materialized_only = false) as
    select time_bucket(interval '1 hour', minute) as hour, host_id, service_id, direction, peer_host, peer_service_id, peer_class,
           proto, port, verdict, reason, sum(flows)::bigint as flows, sum(connections)::bigint as connections,
           sum(packets_out)::bigint as packets_out, sum(packets_in)::bigint as packets_in,
           sum(bytes_out)::bigint as bytes_out, sum(bytes_in)::bigint as bytes_in
    from flow_minutes group by 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11
with no data;
select add_continuous_aggregate_policy('flow_hours', start_offset => null, end_offset => interval '1 hour',
                                       schedule_interval => interval '30 minutes', if_not_exists => true)

-- name: drop_retention
select remove_retention_policy($1::text::regclass, if_exists => true)

-- name: add_retention
select add_retention_policy($1::text::regclass, drop_after => make_interval(secs => $2))
