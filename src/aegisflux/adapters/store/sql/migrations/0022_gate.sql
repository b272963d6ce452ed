-- Only who has the audit key adds a line to the log or moves its head: each passes a gate, an HMAC-SHA256 with a key that is made of it
-- (domain/audit.py). No role of a service reads this key, or writes the log otherwise: a line that follows from nothing would stop
-- every change after it. What is in here believes no line; that is the MAC of the head.
create table audit_gate (
    one           boolean primary key default true check (one),
    inner_key     bytea not null,
    outer_key     bytea not null
);
revoke all on audit_gate from public;

do $migration$
declare
    here text := quote_ident(current_schema());
begin
    execute format($sql$
create function audit_check(said text, gate bytea) returns void language plpgsql security definer set search_path = %1$s, pg_temp as $body$
begin
    if not exists (
        select from audit_gate where sha256(outer_key || sha256(inner_key || convert_to(said, 'UTF8'))) = gate
    ) then
        raise exception 'the audit log takes lines and heads of the control plane alone' using errcode = 'insufficient_privilege';
    end if;
end $body$
    $sql$, here);
    execute format($sql$
create function audit_add(seq bigint, at bigint, actor text, source text, action text, object text, before text, after text, reason text,
    request_id text, hash bytea, gate bytea) returns void language plpgsql security definer set search_path = %1$s, pg_temp as $body$
begin
    perform audit_check(format('line %%s %%s', seq, encode(hash, 'hex')), gate);
    insert into audit values (seq, at, actor, source, action, object, before, after, reason, request_id, hash);
end $body$
    $sql$, here);
    execute format($sql$
create function audit_move(last bigint, digest bytea, proof bytea, gate bytea) returns void language plpgsql security definer
set search_path = %1$s, pg_temp as $body$
begin
    perform audit_check(format('head %%s %%s', last, encode(digest, 'hex')), gate);
    update audit_head set seq = last, hash = digest, mac = proof where one;
end $body$
    $sql$, here);
end
$migration$;
revoke all on function audit_check(text, bytea), audit_move(bigint, bytea, bytea, bytea),
    audit_add(bigint, bigint, text, text, text, text, text, text, text, text, bytea, bytea) from public;
