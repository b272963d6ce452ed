-- What a service in force is to become once somebody approves it; a later change of the same service takes its place.
create table service_changes (
    id            bigint generated always as identity primary key,
    service_id    bigint not null unique references services (id) on delete cascade,
    name          text not null,
    selectors     text[] not null,
    host_labels   jsonb not null,
    created_at    bigint not null,
    created_by    text not null
);
