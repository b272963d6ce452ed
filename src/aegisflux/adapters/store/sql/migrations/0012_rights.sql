-- mac: over all that a token's row means, by a key outside of the database (domain/rights.py).
alter table tokens add column mac bytea;

-- author, approver: the token, as `Principal.key` says; null before this migration: then created_by and approved_by say who.
alter table contents add column author text;
alter table plans add column author text, add column approver text;

-- Days are made and dropped by the owner of the tables, for a writer that may not: of these tables only, and only days.
do $migration$
declare
    here text := quote_ident(current_schema());
begin
    execute format($sql$
create function facts_add_day(kind text, day date) returns void language plpgsql security definer set search_path = %1$s, pg_temp as $body$
declare
    name text := kind || to_char(day, '_YYYYMMDD');
    begins timestamptz := day::timestamp at time zone 'UTC';
    ends timestamptz := (day + 1)::timestamp at time zone 'UTC';
begin
    if kind not in ('flows', 'events') or name !~ '^[a-z]+_[0-9]{8}$' then
        raise exception 'no day of %% is kept: %%', kind, day using errcode = 'insufficient_privilege';
    end if;
    execute format('create table %%I (like %%I including defaults)', name, kind);
    execute format('with moved as (delete from %%I where time >= $1 and time < $2 returning *) insert into %%I select * from moved',
                   kind || '_other', name) using begins, ends;
    execute format('alter table %%I attach partition %%I for values from (%%L) to (%%L)', kind, name, begins, ends);
end $body$
    $sql$, here);
    execute format($sql$
create function facts_drop_day(kind text, day date) returns void language plpgsql security definer set search_path = %1$s, pg_temp as $body$
declare
    name text := kind || to_char(day, '_YYYYMMDD');
begin
    if kind not in ('flows', 'events') or not exists (
        select from pg_inherits i where i.inhparent = kind::regclass and i.inhrelid = to_regclass(quote_ident(name))) then
        raise exception 'no day of %% is kept: %%', kind, day using errcode = 'insufficient_privilege';
    end if;
    execute format('drop table %%I', name);
end $body$
    $sql$, here);
end
$migration$;
revoke all on function facts_add_day(text, date), facts_drop_day(text, date) from public;
