-- What hosts do. An event's id is (source, seq): a source is a host in one boot, or a request of a third party.
alter table hosts add column addresses text[] not null default '{}';
alter table tokens add column host_id text;
alter table tokens drop constraint tokens_role_check;
alter table tokens add check (role in ('source', 'viewer', 'operator', 'approver', 'admin'));
alter table tokens add check ((role = 'source') = (host_id is not null));

create table sources (
    id            integer generated always as identity primary key,
    host_id       text not null,
    boot_id       text not null,
    seen          int8multirange not null default '{}',
    lost          jsonb not null default '{}',
    offset_ns     bigint not null default 0,
    first_at      timestamptz not null default now(),
    last_at       timestamptz not null default now(),
    unique (host_id, boot_id)
);

create table flows (
    time          timestamptz not null,
    source        integer not null,
    seq           bigint not null,
    first_at      timestamptz not null,
    connections   bigint not null,
    packets_out   bigint not null,
    packets_in    bigint not null,
    bytes_out     bigint not null,
    bytes_in      bigint not null,
    direction     text not null,
    verdict       text not null,
    reason        text not null,
    proto         smallint not null,
    local         inet,
    peer          inet,
    port          integer not null,
    service_id    bigint,
    peer_service_id bigint,
    peer_host     text not null,
    peer_class    text not null,
    cgroup        text not null,
    path          text not null,
    package       text not null
) partition by range (time);
create index flows_time on flows using brin (time);
create table flows_other partition of flows default;

-- user_name: who acted, where the event says; body: the enriched event.
create table events (
    time          timestamptz not null,
    source        integer not null,
    seq           bigint not null,
    kind          text not null,
    service_id    bigint,
    pid           bigint,
    path          text not null,
    user_name     text not null,
    peer          inet,
    body          jsonb not null
) partition by range (time);
create index events_time on events using brin (time);
create table events_other partition of events default;

create table flow_minutes (
    minute        timestamptz not null,
    host_id       text not null,
    service_id    bigint not null,
    direction     text not null,
    peer_host     text not null,
    peer_service_id bigint not null,
    peer_class    text not null,
    proto         smallint not null,
    port          integer not null,
    verdict       text not null,
    reason        text not null,
    flows         bigint not null,
    connections   bigint not null,
    packets_out   bigint not null,
    packets_in    bigint not null,
    bytes_out     bigint not null,
    bytes_in      bigint not null,
    primary key (minute, host_id, service_id, direction, peer_host, peer_service_id, peer_class, proto, port, verdict, reason)
);

create table listeners (
    host_id       text not null,
    proto         smallint not null,
    address       text not null,
    port          integer not null,
    service_id    bigint,
    cgroup        text not null,
    path          text not null,
    since         timestamptz not null,
    primary key (host_id, proto, address, port)
);

create table inventories (
    host_id       text primary key,
    digest        text not null,
    taken_at      timestamptz not null,
    body          bytea not null
);
alter table inventories alter column body set storage external;

create table packages (
    host_id       text not null,
    type          text not null,
    name          text not null,
    version       text not null,
    arch          text not null,
    source        text not null,
    source_version text not null,
    place         text not null
);
create index packages_host on packages (host_id);
create index packages_name on packages (name);

create table package_changes (
    time          timestamptz not null,
    host_id       text not null,
    added         boolean not null,
    type          text not null,
    name          text not null,
    version       text not null,
    arch          text not null,
    place         text not null
);
create index package_changes_host on package_changes (host_id, time);

create view flows_view as
    select f.time, s.host_id, f.seq, f.direction, f.verdict, f.reason, f.proto, f.local, f.peer, f.port,
           f.service_id, coalesce(a.name, '') as service, f.peer_service_id, coalesce(b.name, '') as peer_service,
           f.peer_host, f.peer_class, f.cgroup, f.path, f.package, f.first_at, f.connections,
           f.packets_out, f.packets_in, f.bytes_out, f.bytes_in, f.source
    from flows f join sources s on s.id = f.source
    left join services a on a.id = f.service_id left join services b on b.id = f.peer_service_id;

create view events_view as
    select e.time, s.host_id, e.seq, e.kind, e.service_id, coalesce(a.name, '') as service, e.pid, e.path,
           e.user_name, e.peer, e.body, e.source
    from events e join sources s on s.id = e.source left join services a on a.id = e.service_id;

-- Whoever joins events with the registry hears of a change when it is committed.
create function tell_known() returns trigger language plpgsql as $$
begin
    perform pg_notify('aegisflux_known', tg_argv[0]);
    return null;
end $$;
create trigger known_services after insert or delete or update of name, selectors, host_labels on services
    for each statement execute function tell_known('services');
create trigger known_hosts_new after insert or delete on hosts
    for each statement execute function tell_known('hosts');
create trigger known_hosts after update of labels, addresses, released_at on hosts
    for each row when (old.labels is distinct from new.labels or old.addresses is distinct from new.addresses
                       or old.released_at is distinct from new.released_at)
    execute function tell_known('hosts');
create trigger known_inventories after insert or update on inventories
    for each statement execute function tell_known('inventories');
