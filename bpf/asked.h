/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0 */
/* What a program asked for, where its host translates addresses (ADR 0026).
 *
 * The hook of an outgoing packet comes after netfilter's output, that of an incoming one after its input:
 * an incoming packet names what the socket knows, an outgoing one may name a backend, a masquerade or the
 * port in front of a REDIRECT. Here an outgoing packet gets back the addresses that its socket sent it with:
 * of TCP from the socket, which sends to one peer alone; of everything else from the connection that
 * netfilter tracks, which says what this very packet named. Never a UDP socket's peer: sendto() names another. */
#ifndef AEGIS_ASKED_H
#define AEGIS_ASKED_H

#include "identity.h"

#define CT_POINTER (~7UL)
#define CT_INFO 7UL
#define CT_FIRST_REPLY 3	/* enum ip_conntrack_info: from here on a packet of the reply direction */
#define CT_TRANSLATED 0x30	/* IPS_SRC_NAT | IPS_DST_NAT */

extern void *bpf_cast_to_kern_ctx(void *ctx) __ksym __weak;

/* Filled in by libbpf; what older kernels lack is dead code to their verifiers. */
extern int LINUX_KERNEL_VERSION __kconfig;
#define LINUX_6_2 (6 << 16 | 2 << 8)

/* The kernel's own view of the packet; 0 where the kernel does not show it. */
static __always_inline struct sk_buff *buffer_of(struct __sk_buff *skb)
{
	return LINUX_KERNEL_VERSION >= LINUX_6_2 ? bpf_cast_to_kern_ctx(skb) : 0;
}

static __always_inline struct net *net_of(struct __sk_buff *skb)
{
	struct sk_buff *buffer = buffer_of(skb);

	return buffer ? BPF_CORE_READ(buffer, sk, __sk_common.skc_net.net) : 0;
}

/* The cookie of the socket's network namespace, 0 where it cannot be known. */
__noinline __u64 netns_of(struct __sk_buff *skb)
{
	struct net *net = net_of(skb);

	return net ? BPF_CORE_READ(net, net_cookie) : 0;
}

/* Whether only root could have set up what this namespace translates. In a namespace of one's own user
 * namespace anyone is root, and would ask for what is allowed and lead it to what is denied. */
static __always_inline int root_translates(struct __sk_buff *skb)
{
	struct net *net = net_of(skb);

	return net && !BPF_CORE_READ(net, user_ns, level);
}

/* The verifier wants each field of a socket read at its own fixed offset; the compiler would compute one. */
#define FIELD(sk, name) ({ \
	__u64 field_; \
	asm volatile("%0 = *(u32 *)(%1 + %2)" \
		     : "=r"(field_) \
		     : "r"(sk), "i"(__builtin_offsetof(struct bpf_sock, name))); \
	(__u32)field_; })

static __always_inline void set_sides(struct packet *p, const struct nf_conntrack_tuple *t)
{
	if (p->family == 4) {
		set_local4(p, t->src.u3.all[0]);
		set_peer4(p, t->dst.u3.all[0]);
	} else {
		set_local6(p, t->src.u3.all);
		set_peer6(p, t->dst.u3.all);
	}
	if (p->has_ports) {
		p->local_port = bpf_ntohs(t->src.u.all);
		p->peer_port = bpf_ntohs(t->dst.u.all);
	}
}

static __always_inline int is_tracked(struct __sk_buff *skb)
{
	struct sk_buff *buffer = buffer_of(skb);

	return buffer && buffer->_nfct & CT_POINTER;
}

/* Whether netfilter translates the connection that the packet belongs to, and root told it to. */
__noinline int is_translated(struct __sk_buff *skb)
{
	struct sk_buff *buffer = buffer_of(skb);
	struct nf_conn *c;

	if (!buffer || !bpf_core_type_exists(struct nf_conn))
		return 0;
	c = (struct nf_conn *)(buffer->_nfct & CT_POINTER);
	return c && BPF_CORE_READ(c, status) & CT_TRANSLATED && root_translates(skb);
}

/* An outgoing packet whose connection netfilter translates, as it was before. */
__noinline int as_tracked(struct __sk_buff *skb, struct packet *p)
{
	struct nf_conntrack_tuple t = {};
	struct sk_buff *buffer = buffer_of(skb);
	unsigned long word;
	struct nf_conn *c;

	if (!p || !buffer || !is_translated(skb))
		return 0;
	word = buffer->_nfct;
	c = (struct nf_conn *)(word & CT_POINTER);
	if ((word & CT_INFO) >= CT_FIRST_REPLY)
		BPF_CORE_READ_INTO(&t, c, tuplehash[1].tuple);
	else
		BPF_CORE_READ_INTO(&t, c, tuplehash[0].tuple);
	if (t.dst.protonum != p->proto)
		return 0;	/* an error about the connection, not a packet of it */
	set_sides(p, &t);
	return 1;
}

/* The packet names another peer or port than its TCP socket. */
__noinline int as_connected(struct __sk_buff *skb, struct packet *p)
{
	struct bpf_sock *sk = skb->sk;
	__u32 address[4];

	if (!sk || !p || !root_translates(skb) || !(sk = bpf_sk_fullsock(sk)))
		return 0;
	if (p->family == 4) {
		set_peer4(p, FIELD(sk, dst_ip4));
		set_local4(p, FIELD(sk, src_ip4));
	} else {
		address[0] = FIELD(sk, dst_ip6[0]);
		address[1] = FIELD(sk, dst_ip6[1]);
		address[2] = FIELD(sk, dst_ip6[2]);
		address[3] = FIELD(sk, dst_ip6[3]);
		set_peer6(p, address);
		address[0] = FIELD(sk, src_ip6[0]);
		address[1] = FIELD(sk, src_ip6[1]);
		address[2] = FIELD(sk, src_ip6[2]);
		address[3] = FIELD(sk, src_ip6[3]);
		set_local6(p, address);
	}
	p->peer_port = bpf_ntohs(sk->dst_port);
	p->local_port = sk->src_port;
	return 1;
}

static __always_inline int names_its_peer(const struct bpf_sock *sk, const struct packet *p)
{
	if (p->local_port != sk->src_port || p->peer_port != bpf_ntohs(sk->dst_port))
		return 0;
	if (p->family == 4)
		return p->peer[3] == FIELD(sk, dst_ip4);
	return p->peer[3] == FIELD(sk, dst_ip6[3]) && p->peer[2] == FIELD(sk, dst_ip6[2]) &&
	       p->peer[1] == FIELD(sk, dst_ip6[1]) && p->peer[0] == FIELD(sk, dst_ip6[0]);
}

/* A source route leads a packet elsewhere than its socket says: then the packet is right. */
static __always_inline void as_asked(struct __sk_buff *skb, const struct bpf_sock *sk, __u32 dir, struct packet *p)
{
	/* a raw socket of TCP may be connected too, and writes what it likes */
	__u32 is_tcp = p->proto == P_TCP && sk->protocol == P_TCP && sk->type == 1;

	if (dir != EGRESS || p->malformed || p->options)
		return;
	if (is_tcp && sk->state != S_LISTEN && sk->dst_port) {
		if (!names_its_peer(sk, p))
			as_connected(skb, p);
		return;
	}
	if (is_tcp && sk->state == S_LISTEN)
		p->local_port = sk->src_port;
	if (is_tracked(skb))
		as_tracked(skb, p);
}

#endif
