-- Proposals of the segmenter. asked: what was asked for, so that it can be computed again; flows_digest: of the flows that it rests on.
create table proposals (
    id            bigint generated always as identity primary key,
    created_at    bigint not null,
    created_by    text not null,
    asked         jsonb not null,
    flows         bigint not null,
    flows_digest  text not null,
    body          jsonb not null
);

-- Plans. policy: the text that it carries out; inventory_digest: of hosts, services and what was in force; digest: of the whole plan,
-- to which an approval is bound.
create table plans (
    id            bigint generated always as identity primary key,
    created_at    bigint not null,
    created_by    text not null,
    proposal      bigint references proposals (id),
    policy        text not null,
    asked         jsonb not null,
    inventory_digest text not null,
    flows_digest  text not null,
    digest        text not null,
    body          jsonb not null,
    approved_by   text,
    approved_at   bigint
);

-- Versions that hosts judge beside what is in force.
create table candidates (
    service_id    bigint not null references services (id),
    host_id       text not null references hosts (host_id),
    version       bigint not null,
    primary key (host_id, service_id),
    foreign key (service_id, version) references contents (service_id, version) on delete cascade
);
