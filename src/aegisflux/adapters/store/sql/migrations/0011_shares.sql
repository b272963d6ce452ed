-- A rotation ends: a phase waits until `waits_until` for hosts, and never for those of `without`.
alter table rotation add column waits_until bigint not null default 0;
alter table rotation add column wait_seconds bigint not null default 3600;
alter table rotation add column without text[] not null default '{}';

-- An address that several hosts report is used for none of them: who of them tells the truth is not known.
create view shared_addresses as
select a.address, array_agg(distinct h.host_id order by h.host_id) as hosts
from hosts h cross join lateral unnest(h.addresses) as a (address)
where h.released_at is null
group by a.address having count(distinct h.host_id) > 1;

create view host_addresses as
select h.host_id, coalesce(array_agg(a.address order by a.place) filter (where a.address is not null and s.address is null), '{}')
    as addresses
from hosts h
left join lateral unnest(h.addresses) with ordinality as a (address, place) on true
left join shared_addresses s on s.address = a.address
where h.released_at is null
group by h.host_id;
