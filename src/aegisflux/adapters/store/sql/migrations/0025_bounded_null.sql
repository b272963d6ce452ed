-- `least` passes over a null, so that the sum of no rows was the most there is: a rollout passed its gate by it.
create or replace function bounded(numeric) returns bigint language sql immutable parallel safe as
    'select case when $1 > 9007199254740991 then 9007199254740991 else $1 end::bigint';
