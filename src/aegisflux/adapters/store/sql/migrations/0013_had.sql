-- What hosts were given of a service by a post, a promotion, a rollout or by joining it: versions, oldest first. Undoing may lead back to it.
create table had (
    service_id    bigint not null references services (id) on delete cascade,
    host_id       text not null references hosts (host_id),
    versions      bigint[] not null,
    primary key (service_id, host_id)
);
insert into had (service_id, host_id, versions) select service_id, host_id, array[version] from assignments;

-- Hosts from which a service was withdrawn by name: they get it again by a post or a promotion, not by what they report.
create table withheld (
    service_id    bigint not null references services (id) on delete cascade,
    host_id       text not null references hosts (host_id),
    primary key (service_id, host_id)
);
