-- The lock of the one writer of facts, by its number alone: who may take any advisory lock can fill the server's table of
-- locks, which all sessions share (adapters/engines/roles.sql).
create function facts_only_writer() returns void language sql security definer as 'select pg_advisory_lock(18407368311391831)';
revoke all on function facts_only_writer() from public;
do $$ begin
    if exists (select from pg_roles where rolname = 'aegisflux_enrich') then
        execute 'grant execute on function facts_only_writer() to aegisflux_enrich';
    end if;
end $$;
