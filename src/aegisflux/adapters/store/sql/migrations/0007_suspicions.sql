-- inputs: the inventory that a plan was made with, and the versions that were in force.
alter table plans add column inputs jsonb;

-- Hosts that somebody suspects; finding '': a person's own word. What a suspicious host does teaches nothing.
create table suspicions (
    host_id       text not null references hosts (host_id) on delete cascade,
    finding       text not null,
    detail        text not null,
    said_at       double precision not null,
    said_by       text not null,
    primary key (host_id, finding)
);
