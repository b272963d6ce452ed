/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0 */
/* A packet's bytes into `struct packet`. */
#ifndef AEGIS_PARSE_H
#define AEGIS_PARSE_H

#include "packet.h"

/* The header of the transport at `at`, of which `left` bytes belong to the packet. Returns 1 if malformed. */
static __always_inline int parse_transport(struct __sk_buff *skb, __u32 dir, __u32 at, __u32 left,
					   struct packet *p)
{
	__u8 h[16];

	if (p->proto == P_TCP) {
		__u32 length;

		if (left < 20 || bpf_skb_load_bytes(skb, at, h, 16))
			return 1;
		length = (h[12] >> 4) * 4;
		if (length < 20 || length > left)
			return 1;
	} else if (p->proto == P_UDP) {
		__u32 length;

		if (left < 8 || bpf_skb_load_bytes(skb, at, h, 8))
			return 1;
		length = h[4] << 8 | h[5];
		if (length < 8 || length > left)
			return 1;
	} else if ((p->proto == P_ICMP && p->family == 4) || (p->proto == P_ICMP6 && p->family == 6)) {
		if (left < 8 || bpf_skb_load_bytes(skb, at, h, 8))
			return 1;
		p->icmp_type = h[0];
		return 0;
	} else {
		return 0;
	}
	set_ports(p, dir, *(__u16 *)h, *(__u16 *)(h + 2));
	return 0;
}

static __always_inline int parse_v4(struct __sk_buff *skb, __u32 dir, struct packet *p)
{
	__u32 h[5];
	__u8 *b = (__u8 *)h;
	__u32 header, total;

	if (bpf_skb_load_bytes(skb, 0, h, 20))
		return 1;
	set_peer4(p, dir == EGRESS ? h[4] : h[3]);
	set_local4(p, dir == EGRESS ? h[3] : h[4]);
	p->proto = b[9];
	p->hop_limit = b[8];
	header = (b[0] & 15) * 4;
	total = b[2] << 8 | b[3];
	if (!total && skb->gso_size)
		total = skb->len;	/* beyond 64 KiB the field is 0 */
	if (header < 20 || total < header || total > skb->len)
		return 1;
	p->options = header > 20 ? O_ROUTE : 0;
	if ((b[6] & 0x1f) | b[7])
		return 1;		/* a later fragment: sent raw, the kernel's own come after the hook */
	if (b[6] & 0x20)
		total = skb->len > total ? skb->len : total;
	return parse_transport(skb, dir, header, total - header, p);
}

static __always_inline int parse_v6(struct __sk_buff *skb, __u32 dir, struct packet *p)
{
	__u32 h[10];
	__u8 *b = (__u8 *)h;
	__u32 at = 40, end;
	__u8 next;
	int i;

	if (bpf_skb_load_bytes(skb, 0, h, 40))
		return 1;
	set_peer6(p, dir == EGRESS ? h + 6 : h + 2);
	set_local6(p, dir == EGRESS ? h + 2 : h + 6);
	if (p->family == 4)
		return 1;		/* a mapped address never travels, but when forged */
	next = b[6];
	p->hop_limit = b[7];
	p->proto = next;
	end = 40 + (b[4] << 8 | b[5]);
	if (end == 40 && skb->gso_size)
		end = skb->len;
	if (end > skb->len)
		return 1;
	for (i = 0; i <= MAX_EXTENSIONS; i++) {
		__u8 x[4];
		__u32 length;

		if (next != 0 && next != 43 && next != 44 && next != 60 && next != 51) {
			p->proto = next;
			return parse_transport(skb, dir, at, end - at, p);
		}
		if (i == MAX_EXTENSIONS || at + 8 > end || bpf_skb_load_bytes(skb, at, x, 4))
			return 1;
		p->options |= next == 43 ? O_ROUTE : next == 44 ? 0 : O_ANY;
		length = next == 44 ? 8 : next == 51 ? (x[1] + 2) * 4 : (x[1] + 1) * 8;
		if (next == 44 && (x[2] | (x[3] & 0xf8)))
			return 1;
		next = x[0];
		at += length;
		if (at > end)
			return 1;
	}
	return 1;
}

/* Any packet, by copies: options, extension headers, ICMP, other protocols, headers beyond the linear part. */
__noinline int parse_slowly(struct __sk_buff *skb, __u32 dir, struct packet *p)
{
	__u8 first = 0;

	if (!p)
		return 0;
	__builtin_memset(p, 0, sizeof(*p));
	set_peer4(p, ~0U);	/* of nobody, until it is read: 0.0.0.0 would be the host's own */
	if (bpf_skb_load_bytes(skb, 0, &first, 1))
		p->malformed = 1;
	else if (first >> 4 == 4 && skb->protocol == V4)
		p->malformed = parse_v4(skb, dir, p);
	else if (first >> 4 == 6 && skb->protocol == V6)
		p->malformed = parse_v6(skb, dir, p);
	else
		p->malformed = 1;
	return 0;
}

static __always_inline int fast_transport(void *l4, void *end, __u32 dir, __u32 left, struct packet *p)
{
	__u16 *port = l4;
	__u8 *b = l4;

	if (p->proto == P_TCP) {
		__u32 length;

		if (l4 + 20 > end)
			return 0;
		length = (b[12] >> 4) * 4;
		if (length < 20 || length > left)
			return 0;
	} else if (p->proto == P_UDP) {
		__u32 length;

		if (l4 + 8 > end)
			return 0;
		length = bpf_ntohs(port[2]);
		if (length < 8 || length > left)
			return 0;
	} else {
		return 0;
	}
	set_ports(p, dir, port[0], port[1]);
	return 1;
}

/* Plain TCP and UDP by direct access; whatever is odd goes the slow way, which decides. */
static __always_inline void parse(struct __sk_buff *skb, __u32 dir, struct packet *p)
{
	void *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;
	__u8 *b = data;
	__u32 *w = data;

	p->malformed = 0;
	p->icmp_type = 0;
	p->has_ports = 0;
	p->options = 0;
	if (data + 28 <= end && b[0] == 0x45 && skb->protocol == V4) {
		__u32 total = bpf_ntohs(*(__u16 *)(b + 2));

		p->proto = b[9];
		p->hop_limit = b[8];
		if (total == skb->len && !(*(__u16 *)(b + 6) & bpf_htons(0x3fff))) {
			set_peer4(p, dir == EGRESS ? w[4] : w[3]);
			set_local4(p, dir == EGRESS ? w[3] : w[4]);
			if (fast_transport(data + 20, end, dir, total - 20, p))
				return;
		}
	} else if (data + 48 <= end && b[0] >> 4 == 6 && skb->protocol == V6) {
		__u32 left = bpf_ntohs(*(__u16 *)(b + 4));

		p->proto = b[6];
		p->hop_limit = b[7];
		if (left + 40 == skb->len) {
			set_peer6(p, dir == EGRESS ? w + 6 : w + 2);
			set_local6(p, dir == EGRESS ? w + 2 : w + 6);
			if (p->family == 6 && fast_transport(data + 40, end, dir, left, p))
				return;
		}
	}
	parse_slowly(skb, dir, p);
}

#endif
