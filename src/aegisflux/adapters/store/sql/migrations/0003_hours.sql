-- Hours, for looks at long times. Where TimescaleDB is, a continuous aggregate takes this view's place.
create view flow_hours as
    select date_trunc('hour', minute) as hour, host_id, service_id, direction, peer_host, peer_service_id, peer_class, proto, port,
           verdict, reason, sum(flows)::bigint as flows, sum(connections)::bigint as connections,
           sum(packets_out)::bigint as packets_out, sum(packets_in)::bigint as packets_in,
           sum(bytes_out)::bigint as bytes_out, sum(bytes_in)::bigint as bytes_in
    from flow_minutes group by 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11;
