"""Package databases for tests: rpm's headers built from tags, and databases built around them.

BDB_LITTLE and BDB_BIG are files of Berkeley DB 5.3 (db5.3_load, pages of 1024 bytes) with two headers that
rpm 4.18 wrote for a package and its subpackage, as read from rpmdb.sqlite.
"""

import sqlite3
import zlib
from base64 import b85decode
from pathlib import Path
from struct import pack

NAME, VERSION, RELEASE, EPOCH, ARCH, SOURCERPM = 1000, 1001, 1002, 1003, 1022, 1044
OLDFILENAMES, DIRINDEXES, BASENAMES, DIRNAMES = 1027, 1116, 1117, 1118


def header(tags: dict[int, str | int | list[str] | list[int]]) -> bytes:
    """A header: strings, 32-bit numbers and arrays of them."""
    entries, data = b"", b""
    for tag, value in tags.items():
        values = value if isinstance(value, list) else [value]
        if isinstance(values[0], int):
            data += bytes(-len(data) % 4)
            kind, body = 4, pack(f">{len(values)}I", *values)
        else:
            kind = 8 if isinstance(value, list) else 6
            body = b"".join(one.encode("utf-8", "surrogateescape") + b"\0" for one in values)
        entries += pack(">IIiI", tag, kind, len(data), len(values))
        data += body
    return pack(">II", len(tags), len(data)) + entries + data


def package(name: str, version: str = "1.0", release: str = "1", **more: object) -> bytes:
    """The header of a package; `files` are its paths."""
    files = [str(file).rpartition("/") for file in more.pop("files", [])]
    tags = {NAME: name, VERSION: version, RELEASE: release, ARCH: "x86_64"}
    if "epoch" in more:
        tags[EPOCH] = more["epoch"]
    if "source" in more:
        tags[SOURCERPM] = more["source"]
    if files:
        folders = sorted({folder + "/" for folder, _, _ in files})
        tags[DIRINDEXES] = [folders.index(folder + "/") for folder, _, _ in files]
        tags[BASENAMES] = [base for _, _, base in files]
        tags[DIRNAMES] = folders
    return header(tags)


def rpmdb(path: Path, blobs: list[bytes]) -> sqlite3.Connection:
    """rpmdb.sqlite as rpm makes it: with a log beside it for as long as the connection is open."""
    path.parent.mkdir(parents=True, exist_ok=True)
    database = sqlite3.connect(path)
    database.execute("pragma journal_mode = wal")
    database.execute(
        "create table if not exists 'Packages' (hnum integer primary key autoincrement, blob blob not null)"
    )
    database.executemany("insert into Packages(blob) values (?)", [(blob,) for blob in blobs])
    database.commit()
    return database


def ndb(blobs: list[bytes]) -> bytes:
    """Packages.db: a page of slots, then blobs in blocks of 16 bytes."""
    slots, body = b"", b""
    for number, blob in enumerate(blobs, 1):
        whole = pack("<4sIII", b"BlbS", number, 1, len(blob)) + blob
        whole += bytes(-(len(whole) + 12) % 16) + pack("<II4s", zlib.adler32(blob), len(blob), b"BlbE")
        slots += pack("<4sIII", b"Slot", number, (4096 + len(body)) // 16, len(whole) // 16)
        body += whole
    slots += pack("<4sIII", b"Slot", 0, 0, 0) * (254 - len(blobs))
    return pack("<4sIIII12x", b"RpmP", 0, len(blobs), 1, len(blobs) + 1) + slots + body


BDB_LITTLE = zlib.decompress(
    b85decode(
        r"c-"
        r"rllO^6&t6vwM)W;Zb=8Zprrau^h06=$Zqs=BLMgt#VZ7BNP%N`!n^pS!KIGvmyx?n(~kmV=^V4k9^t2<XwP;2{U`?m<yO@L<"
        r"$vK0%`7)9UFrJJYL+iXIf_K~MFsUe&AW>V94S9)u9`P-bG|IJz!9DY;{HR<{cM*4CA8N9Za-"
        r"Pwaj7=;w=Boi`LGwW2#dd3ARG^7@gDY-Il~Tb`pObfSpXT`FEEo-dv#j@D;nBl}NV@z9GW#$8z+bBSI+{h#6dFAOy=ptHUFc"
        r"fYy%zq0?M(f&WOk^LLr1nG``+{t^-8_NIU(%zr)x5b|DpLG15E4OAJ0;RO!dUxo-_d(jZ_`NH~;U$vtN#M1>KLD=>{t*V+0D"
        r"Q`o>4(QA;M2gHfzLquEx>0XUK#j2_<i6D;HSVp19RYCApTb1E8u?w_$u(@8J9{Be^0hhrEyp=4SXH&v%qVheGB+{Sg(V?Ycu"
        r"w?0<X*3d)t9;1phAJ^}q*!H)Qkk8Zf_&(El*_Z-"
        r"w?pvU^h61pfE4vUD5xj{|ScxNs}*L>9kLh4>F=^#u;`cL4Y2I|cpw^W6jfX&C=$@b3lQ3;sH^-"
        r"v|B$;Qhd_0!x_BS1=z9{0*=HJ_&4r&j8nf&jEL{@rxyhKM%Yf_=Rlz;ue_ii{PII{{rwcz>C23EdI@J0=Ixa&c-"
        r"ixfxm(HF9Dx`_8$VD1po1jdx=_t`=0U`<m09+r@VDp{N8;_{Wk%_^IJRz{g1%)k3sp?Apc=0(AXgV(<{3LdLD%yGr;cv&jKG"
        r"yc^m2`jm1j0*{q|WiV=bEUDQR-jm>=_=aagwngub}s+-Jr!vnjwqefFU^&)z*(P<f#*u-"
        r"d5Pa5+JXn{uuqBM!o8hE=D4xK)9?9j2Sa~iXM2=22;6OFmXf$^~)V2OPrEYs4mkovKRFk=Csl*B#`E#}yeh#NxuP)LgyQIhb"
        r"Gi-<G9X-"
        r"t(M1Uo13gUB_uL<>z~O|h~OR)QK9Yb~%4is@LWzaL<^723^a7p?ds%uLd$)Du~8Yh5ALPFq#mtvT26+K>(I$kN$_Th>ZM?{Y"
        r"2gPjBLy{!x=jqt=;4E{Y2~v8_4RYMV~S=!cTJ*(v5s=dQjlt=XQ;m`-"
        r"<4w@WP6o1)javqQXKcD0R77ThqT>Q`wcK(rcF{a%^<2E6Jo`vmod<Y<3OO5dETgL`{diTdTRbWN`eJ^JAE<o3zwNz^t%&lyy"
        r"k@3eatl%2T=)>@0**=B>(bkgZoT0%W1+y&Hn>k?FZl}W=kp+jd@v`tMnRj)w}RUX6T$_!Giq={x;N?Is}$Fri1OhluSJ+do("
        r"UhjHr_tc(pXV%o~<&J76t?oVL$=%zgrpjHj&@Gz<qvpFpy1W?Ft`MtdPr%yDcWs3uBe98fOr^zGaTze?2O=~|8$}{!F|nLTs"
        r"UqnzgGYvjAv0PqF2a7$F?a`L{F8gX7_5C2Wup*j0!kvqjlwR=B0@qH1tyZ*@Gx-Cy*8RrUq)PqF69X3u?<|#5rd760)hG>;@"
        r"Y*#FM|+pVeQ+~Z@hWt;<Gz%kJh|)Y2VaQE`4Q*GCswE;*k5k;)MBONUe>eyE5hzpV9~k8Y&zrDMIVJ%!-"
        r"7y#>l{$kVi_e(7L=1IN^b|E=piRtC&kj7F#V{g39de@g*c$Zyy`*$VT>m`~Pno4gT+6(*JjZCIkKNefmGu|Dd;f`rjMq>z=+"
        r"J(%0w}(1W0_(ObZvuhDnFps&#thzEMvE9LdFw-y-mueT+yf4w{M`q!Jt>tC;u*S}sZuTOj58$<fk+mY9&-"
        r"p;%}^<K~GQ}0M#pL*Zt^{IC%uTQ<pd3{>AGp|nzvoPOVhQ1GmRA-"
        r"@;SDl4!raG6DP)>Dr++(_e>O_A=b*`kZ2BR&VEh(yDHT4gxs6P@>zpIk|ShV!>f7Q@Cz(e<XXw{OO0gWLniA|t_SXk<mgRxB"
        r"bP8Y=7SmCsX6ar&zWo+H9PdLRo(o6<a1T+fWb{%K2Fwt&v$C6qjTyv+$4QH6qKuWjKv)GqJX{VXFlkSp60Vc$7>`P8%$OJY+"
        r"O5)1bOG={j;76ZbeCPQC{JV`;KRDccs&gL?m>X7M;bae0HjIUn`jPSdPzfB$FqW7R%>-"
        r"fwOBHJ;iYVnuQiZJ(IB^_=z8}Zd3d4LWBvV3T<-RBa97G~egffMxyT*Z%I5<)fBm1w}uQc0Yas"
    )
)
BDB_BIG = zlib.decompress(
    b85decode(
        r"c-"
        r"rllONbmr7{{w;W)l+=O)$|YISh&rA2ZWkRozuBLR=Fyi<m^SN(435bGLPNW}KPTUGZRU9uyUG5b@w42ajGn2p$58cMl2*f(K"
        r"vmkwg$*d0Er-&Fpk=QPhLtd@$YptFP*-s_y=({yhlg7Uah@TZKEWL#Tq#MQCVi(FL}(dNo4l5PEa-JHLFiJSq-GalDlunt$&"
        r"7-zlHi#3uIdvSN-"
        r"_%Acc+<<sRK%ip`JiA`)`|79zGb;HTQ_Kwh0b&%zypmf2WoR^NMR6d#K|4C1OasNk?{eNN;`!}uxWvB0tjpt?H3;phog7O!+"
        r">YsM-"
        r"x;yXmUjdattxfKy(aQHhFbL`w7X+(H`8e<f;IDx<0e_SCg3uP=Z~a#X+6Md`@KwMkp#FAXSj<or_<Qh&z(0bY0{;Zefq#bhJ"
        r"Au!F|4!g@z;}DDR3QFAf0rt2;BIN)b-"
        r"<4RuZQ{_;EUmYJq5hMbFdS5qpu(A2EG*h`++wB9|GRu#}~9<d|RRYGvL1h>L2mXq_PeCZ}@ZNO7I^8zRGjy3g8_+eyI-"
        r"e@9^a%4)ON@563$L?T6z%2>w~<|9<d40Q>;>n^6Bj@Gk*B1pFMZgz<a=<I%vM0UO}sz!vxfa1;0xaNqY|u0Z@n;7!1f`~J(@"
        r"VZ2X(e-`{pzz+j212=vA%U%NR0Kez^FZY2zgZNJZe-"
        r"8EE20jk{W1fQmo(tqlFa`Oz&F56G(Z|o9+rYmW7~bFVDQJHL=064JmkWD0+zm7Z`9GN1<<Rm~XfX%;8t^>u(E;y5{j9ZI>$l"
        r"rY6xA^z5WA21=+UW#kK|(3)OE8Y7CKGieV5#NU^i;DWm_+!dt1GZQJKw*M$N3XxP+E?awr)jF<K9+OX=`;hmRgU>KhMY4u67"
        r"&EYU<`u5n~S97b5;&<M-"
        r"4v@E7!DiX|CL?|U`h+~U6HYDMOkT4d~B1V)XJmw<dOmLb~B?!UJNx~>`l`YXilT=fzY=V`bhNW5yEQDe@73%K?xX?=7cDs*O"
        r"JqR<G^=i#b*4(|Wk$SJI>fO$QYj}RlR-VY{YKOb6wS->hYThz<i0g;HhRj-x-aK+qT-"
        r"Y7E+6$eo>Gh1hJ!_i1V!`yT8~O$%yR$jd>#vmU7t77I$Se2uh{w(TuCdvY>xR_BI;};B){}aepZzi7_3#4i7>sGr;eIq&IWL"
        r"NC%4dm&=W*RSm>Ih3w%O_3)3ej4YlL1fsIl1V<`eQ)Zh(!>a(}+vA`PAO`n8Twj|w+|Mt)zSdR~~dY#SQ%=0(>ubX(;W8mP7"
        r"pS8H=fb+R^^dot^w6kgAoHZl{fntx?i`?lV{@4(E#YH!{&o7JA`W}W_x)#(GfW@f5=v(&GeC8HMmLb|+IDP1L2Zuh{wS?t>y"
        r"M@C|k>Xb^0vEnjfEQ~~Kls1Ya%wl3Wky0hnWd=_SjbmoCU|hswai?Gn7|;)Bt-(4}iSLC-"
        r"6H$^VZWMM|mJkxFBr=KQhR2b6@3qm4hBDzgb}2_NPi^FKju>oo5)J-"
        r"U^djQ?`7=+05O87bE3+@YbmG@X_FkQ=fBy7?Gp}+PDod0JDHasRJPZ{lER17nZ6e*wSV%%j6C`M?aIB<=ZRj#95!M<bBWq%w"
        r"D8XXu@;c&#N7}k5k%_HhE+JWJwR8z8{p#^CBwD_Yt?<Mq_CNgpZ_Vic{-"
        r"OTA9yA%~|KNlFss0DOo$LQ#MPKLoeoSAZXF(5wzD6$tgT6*z0)xIrXCWTw<)Bj3%fSX<(7(a<qW%r8DeB)~M^XO<wW9tF8by"
        r"7Ye{YQG(_l|gp9Xu2`ZRc<s853<MSU84Rn(`!w?%y#oGI$l(zQi>TAGLPUOx7HFs3?7oucY2^}XsGDWQVu?77!;71fFUjOtu"
        r"XU#;{ux*92}aW(Z1tEfK`QNOE_{#dk(<^S5z8W03Gp|vA90~$kElA1_Gsj$>32V<ECoi0eZvBGH&DFnvc%GA1DpKywGqM3}S"
        r"h-ebK?K<_bFwt&v$C6qjTy>|&4QH6qNJ_WSvow@MX{VXFlkSox5hlcN97;}Q%mg-LO5*INBPCI}?cEQ5eeJPB{L8K9-"
        r"g>5eU+-ofG1sla!pR=0Y@7-"
        r"w^%E0@u@X3zaVjw*nhC@VmMYaw6j92RqzYRnaMCo2!!S*)6^4aYNT!6w%6(BpI7&pM2xSUWH^&tv@zg{`OzgjAzX9xfWAF"
    )
)
