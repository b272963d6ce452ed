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
