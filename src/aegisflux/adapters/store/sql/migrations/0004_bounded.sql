-- A sum stays at a bound (that of domain/rollup.py): no host's numbers may make a statement fail. The hours of flow_hours
-- add up 60 minutes, which fits.
create function bounded(numeric) returns bigint language sql immutable parallel safe as
    'select least($1, 9007199254740991)::bigint';
