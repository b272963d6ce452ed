-- What only the superuser may do, by `postgres --single -j` before the server starts; safe to do twice. A statement ends
-- with a semicolon and an empty line. Before it stand the roles themselves, with their passwords (roles.py).

-- The superuser, whatever initdb called it, connects no more.
do $$ declare one record; begin
    for one in select rolname from pg_roles where oid = 10 loop
        execute format('alter role %I nologin password null', one.rolname);
    end loop;
end $$;

alter database aegisflux owner to aegisflux_owner;

-- What it owned in a database of before there were roles. Tables first: a sequence follows its table, a view goes alone.
do $$ declare one record; begin
    for one in
        select relname, case relkind when 'v' then 'view' when 'm' then 'materialized view' else 'table' end as kind
        from pg_class where relnamespace = 'public'::regnamespace and relowner = 10 and relkind in ('r', 'p', 'v', 'm')
        order by relkind in ('v', 'm')
    loop
        execute format('alter %s public.%I owner to aegisflux_owner', one.kind, one.relname);
    end loop;
    for one in
        select oid::regprocedure as signature from pg_proc where pronamespace = 'public'::regnamespace and proowner = 10
    loop
        execute format('alter function %s owner to aegisflux_owner', one.signature);
    end loop;
end $$;

revoke all on database aegisflux, postgres, template1 from public;

grant connect on database aegisflux to
    aegisflux_owner, aegisflux_orchestrator, aegisflux_ingest, aegisflux_enrich, aegisflux_segmenter;

revoke all on schema public from public;

grant usage on schema public to aegisflux_orchestrator, aegisflux_ingest, aegisflux_enrich, aegisflux_segmenter;

-- What a service left behind holds nothing for long: a lock that it waits for, and a transaction that it forgot. A role
-- may switch this off for itself; the orchestrator ends such sessions where it waits for them (adapters/store/blockers.py).
do $$ declare one text; begin
    foreach one in array array['orchestrator', 'ingest', 'enrich', 'segmenter'] loop
        execute format('alter role %I set lock_timeout = %L', 'aegisflux_' || one, '10s');
        execute format('alter role %I set idle_in_transaction_session_timeout = %L', 'aegisflux_' || one, '30s');
    end loop;
end $$;

grant pg_signal_backend to aegisflux_orchestrator;

-- What is counted for the server, not for a role: advisory locks fill the table of locks, without which nobody can write,
-- and large objects fill the disk.
do $$ declare one text; begin
    for one in
        select oid::regprocedure from pg_proc
        where pronamespace = 'pg_catalog'::regnamespace and proname ~ '^(pg_(try_)?advisory_(xact_)?lock|lo_|lowrite$|loread$)'
    loop
        execute format('revoke all on function %s from public', one);
    end loop;
end $$;

grant execute on function pg_advisory_lock(bigint), pg_advisory_xact_lock(bigint) to aegisflux_owner;

