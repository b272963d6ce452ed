/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0 */
/* A packet as a verdict sees it: parse.h reads it from its bytes, asked.h puts back what the host translated. */
#ifndef AEGIS_PACKET_H
#define AEGIS_PACKET_H

#include <bpf/bpf_endian.h>
#include "objects.h"

#define V4 bpf_htons(0x0800)
#define V6 bpf_htons(0x86dd)
#define P_TCP 6
#define P_UDP 17
#define P_ICMP 1
#define P_ICMP6 58
#define MAX_EXTENSIONS 8
#define MAPPED bpf_htonl(0xffff)

#define O_ANY 1
#define O_ROUTE 2		/* options of IPv4, or a routing header: the destination may be a hop of a source route */

struct packet {
	__u64 netns;		/* cookie of the socket's network namespace; 0 until somebody needs it */
	__u32 peer[4];		/* network order; IPv4 as ::ffff:a.b.c.d */
	__u32 local[4];		/* this host's end of it; zero where it is not known */
	__u16 local_port;	/* host order */
	__u16 peer_port;
	__u8 family;
	__u8 proto;
	__u8 malformed;
	__u8 icmp_type;
	__u8 hop_limit;
	__u8 has_ports;
	__u8 options;		/* O_*: what stands between the header and the transport's */
	__u8 zero;
};

static __always_inline void set_peer4(struct packet *p, __u32 address)
{
	p->peer[0] = 0;
	p->peer[1] = 0;
	p->peer[2] = MAPPED;
	p->peer[3] = address;
	p->family = 4;
}

static __always_inline void set_peer6(struct packet *p, const __u32 *address)
{
	p->peer[0] = address[0];
	p->peer[1] = address[1];
	p->peer[2] = address[2];
	p->peer[3] = address[3];
	p->family = !p->peer[0] && !p->peer[1] && p->peer[2] == MAPPED ? 4 : 6;
}

static __always_inline void set_local4(struct packet *p, __u32 address)
{
	p->local[0] = 0;
	p->local[1] = 0;
	p->local[2] = MAPPED;
	p->local[3] = address;
}

static __always_inline void set_local6(struct packet *p, const __u32 *address)
{
	p->local[0] = address[0];
	p->local[1] = address[1];
	p->local[2] = address[2];
	p->local[3] = address[3];
}

static __always_inline void set_ports(struct packet *p, __u32 dir, __u16 source, __u16 dest)
{
	p->local_port = bpf_ntohs(dir == EGRESS ? source : dest);
	p->peer_port = bpf_ntohs(dir == EGRESS ? dest : source);
	p->has_ports = 1;
}

#endif
