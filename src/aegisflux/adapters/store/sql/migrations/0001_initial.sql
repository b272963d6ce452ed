-- Everything that the control plane knows. Times are seconds since the epoch, UTC.
create table services (
    id            bigint primary key check (id between 0 and 4294967295),
    name          text not null unique,
    selectors     text[] not null default '{}',
    host_labels   jsonb not null default '{}',
    latest        bigint not null default 0,
    stable        bigint,
    promotions    bigint[] not null default '{}',
    open_version  bigint,
    open_until    bigint not null default 0,
    created_at    bigint not null
);

create table contents (
    service_id    bigint not null references services (id),
    version       bigint not null,
    digest        text not null unique,
    rules_digest  text not null,
    tables_digest text not null,
    tables_format integer not null,
    entries       integer not null,
    ttl_seconds   bigint not null,
    mode          text not null,
    on_expiry     text not null,
    established   text not null,
    created_at    bigint not null,
    created_by    text not null,
    copy_of       bigint,
    snapshot      bytea not null,
    payload       bytea not null,
    key_id        text not null,
    signature     bytea not null,
    primary key (service_id, version)
);
alter table contents alter column snapshot set storage external;
alter table contents alter column payload set storage external;

-- A released host keeps its row: its serial must never fall.
create table hosts (
    host_id       text primary key,
    public_key    bytea,
    labels        jsonb not null default '{}',
    enrolled_at   bigint not null,
    released_at   bigint,
    serial        bigint not null default 0,
    built_serial  bigint not null default 0,
    dirty         boolean not null default true,
    message       bytea,
    issued_at     bigint not null default 0,
    digests       text[] not null default '{}',
    seen_at       double precision not null default 0,
    every         double precision not null default 5,
    heartbeat     bytea,
    heartbeat_serial bigint not null default 0
);
create index hosts_dirty on hosts (host_id) where dirty;

create table assignments (
    service_id    bigint not null references services (id),
    host_id       text not null references hosts (host_id),
    version       bigint not null,
    lease_until   bigint not null,
    renewed       boolean not null,
    changed_at    bigint not null,
    primary key (host_id, service_id),
    foreign key (service_id, version) references contents (service_id, version)
);
create index assignments_service on assignments (service_id);
create index assignments_leases on assignments (lease_until) where renewed;

create table reports (
    host_id       text not null references hosts (host_id),
    service_id    bigint not null,
    state         text not null default 'pending',
    version       bigint,
    digest        text,
    tables_digest text,
    deadline      bigint,
    since         double precision not null default 0,
    cgroups       text[] not null default '{}',
    conflicts     text[] not null default '{}',
    drift         boolean not null default false,
    ack_serial    bigint not null default 0,
    ack_version   bigint,
    ack_digest    text,
    ack_at        double precision,
    ack_stored_at double precision,
    awaits        boolean not null default false,
    confirmed_at  double precision,
    nack_serial   bigint not null default 0,
    nack_version  bigint,
    nack_reason   text,
    nack_detail   text,
    nack_at       double precision,
    primary key (host_id, service_id)
);
create index reports_service on reports (service_id);
create index reports_awaiting on reports (host_id) where awaits;

create table outbox (
    id            bigint generated always as identity primary key,
    msg_id        text not null unique,
    payload       bytea not null,
    created_at    bigint not null,
    sent          boolean not null default false
);
create index outbox_unsent on outbox (id) where not sent;

create table audit (
    seq           bigint primary key,
    at            bigint not null,
    actor         text not null,
    source        text not null,
    action        text not null,
    object        text not null,
    before        text not null,
    after         text not null,
    reason        text not null,
    request_id    text not null,
    hash          bytea not null
);
create table audit_head (
    one           boolean primary key default true check (one),
    seq           bigint not null,
    hash          bytea not null,
    mac           bytea not null
);

create table tokens (
    id            text primary key,
    name          text not null,
    role          text not null check (role in ('viewer', 'operator', 'approver', 'admin')),
    hash          bytea not null unique,
    created_at    bigint not null,
    created_by    text not null,
    expires_at    bigint,
    last_used     bigint,
    revoked_at    bigint
);

create table enroll_tokens (
    hash          text primary key,
    labels        jsonb not null,
    host_id       text,
    created_at    bigint not null,
    created_by    text not null,
    expires_at    bigint not null,
    used_by       text,
    used_key      bytea,
    used_at       bigint,
    answer        bytea
);

create table idempotency (
    actor         text not null,
    key           text not null,
    request       bytea not null,
    answer        bytea not null,
    created_at    bigint not null,
    primary key (actor, key)
);

create table key_sets (
    version       bigint primary key,
    envelope      bytea not null,
    signing       text not null,
    created_at    bigint not null
);

create table rotation (
    one           boolean primary key default true check (one),
    phase         text not null check (phase in ('added', 'switched')),
    new_key       text not null,
    old_key       text not null,
    started_at    bigint not null,
    asked         bigint not null default 0
);
