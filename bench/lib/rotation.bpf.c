/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0 */
/* The product's programs, and entries that judge another flow at every run: a test run repeats one packet,
 * whose tables and branches are then as warm as no new flow finds them. */
#include "../../bpf/aegis.bpf.c"

#define ROTATED 65536

struct rotated {
	__u32 peer[4];
	__u16 peer_port;
	__u8 family;
	__u8 zero;
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, ROTATED);
	__uint(key_size, 4);
	__uint(value_size, sizeof(struct rotated));
} rotations SEC(".maps");
ARRAY_OF(rotation_at, BPF_MAP_TYPE_ARRAY, __u32, 1);	/* a run may change its CPU */

static __always_inline struct rotated *next_flow(void)
{
	__u32 zero = 0, *at = bpf_map_lookup_elem(&rotation_at, &zero), index;

	if (!at)
		return 0;
	index = (*at)++ & (ROTATED - 1);
	return bpf_map_lookup_elem(&rotations, &index);
}

/* aegis_test_egress, with peer and port from the list. Keep it alike. */
SEC("cgroup_skb/egress")
int aegis_rotate(struct __sk_buff *skb)
{
	struct view v = {.packet_dir = EGRESS, .dir = EGRESS};
	__u32 flags = skb->cb[CB_FLAGS];
	struct control *ctl = control();
	struct bpf_sock *sk = skb->sk;
	struct rotated *flow;
	struct state *st;

	if (!sk || !ctl)
		return PASS;
	st = bpf_sk_storage_get(&states, sk, 0, 0);
	sk = bpf_sk_fullsock(sk);
	if (!sk)
		return PASS;
	v.slot = skb->cb[CB_SLOT];
	if (v.slot >= MAX_SLOTS)
		return PASS;
	parse(skb, EGRESS, &v.p);
	flow = next_flow();
	if (!flow)
		return PASS;
	__builtin_memcpy(v.p.peer, flow->peer, 16);
	v.p.peer_port = flow->peer_port;
	v.p.family = flow->family;
	return judge_packet(skb, sk, &v, st, ctl, flags | CB_GIVEN) & 1;
}

/* Taking the next flow costs this much more than aegis_empty. */
SEC("cgroup_skb/egress")
int aegis_rotate_empty(struct __sk_buff *skb)
{
	struct rotated *flow = next_flow();

	return flow && flow->family ? 1 : 0;
}
