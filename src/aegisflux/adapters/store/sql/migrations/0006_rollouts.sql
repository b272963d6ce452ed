-- accepted: the recorded flows that the plan would cut are meant to be cut.
alter table plans add column accepted boolean not null default false;

-- preflight: the host looks first whether it would cut what is alive.
alter table assignments add column preflight boolean not null default false;

-- candidate: the digest that a host says it judges beside what is in force, and since when.
alter table reports add column candidate text, add column candidate_since double precision not null default 0;

-- Rollouts in stages. run: domain.stages.Run; parts: of each service what it gets, where, and what it replaces;
-- looked: what the last look saw.
create table rollouts (
    id            bigint generated always as identity primary key,
    plan          bigint not null references plans (id),
    created_at    bigint not null,
    created_by    text not null,
    stage         text not null,
    run           jsonb not null,
    parts         jsonb not null,
    looked        jsonb not null default '{}',
    looked_at     double precision not null default 0
);
create index rollouts_live on rollouts (id) where stage in ('observe', 'canary', 'waves', 'promoted');

-- What happened to a rollout, each change of its stage, in order.
create table rollout_steps (
    rollout       bigint not null references rollouts (id),
    at            double precision not null,
    stage         text not null,
    turn          integer not null,
    who           text not null,
    reason        text not null,
    did           text[] not null
);
create index rollout_steps_of on rollout_steps (rollout, at);

create index events_verdicts on events (time) where kind = 'verdict';

-- What whoever watches a service said of it last; host '': of all its hosts.
create table service_health (
    service_id    bigint not null references services (id) on delete cascade,
    host_id       text not null,
    healthy       boolean not null,
    detail        text not null,
    said_at       double precision not null,
    said_by       text not null,
    primary key (service_id, host_id)
);
