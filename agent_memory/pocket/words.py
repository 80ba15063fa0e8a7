"""The raw words of the pocket model's generated language.

Knows plain English and technical words, syllables, and lists of licences and places.
It knows no real package: words that are one are removed by `agent_memory.pocket.real`.
"""

from typing import Final

FIELDS: Final[tuple[str, ...]] = (
    "version", "author", "license", "section", "maintainer", "files", "size", "requires", "homepage", "architecture",
    "port", "status", "owner", "region", "path", "priority", "source", "host", "email", "updated", "checksum", "summary",
)  # fmt: skip

ENGLISH: Final[tuple[str, ...]] = tuple(
    """
    able about above access account across action active add address after again agent air alert all alpha amber anchor
    angle animal answer apple archive area arm array arrow art asset atlas audio autumn back badge balance ball band bank
    bar barn base basket batch bay beacon beam bear bed bell berry best beta big bird birch bit black blade block blue
    board boat body bold bolt bone book border bottle bottom bow box branch brass bread brick bridge bright broker brook
    brown brush bubble bucket budget buffer build bundle bus button cable cache cake call camera camp canal candle canvas
    cape card cargo carpet case castle cat cave cell center chain chair chalk change channel chart check cherry chest
    child choice circle city clay clean clear client cliff clock cloth cloud club coal coast coat code coffee coin cold
    color column command common compact company compass compute copper copy coral core corn corner cotton count country
    course court cover craft crane cream creek crew crop cross crown crystal cup curve custom cycle dairy damp dance dark
    data date dawn day deal deep deer delta desert design desk detail device dial diamond digest direct dish dock doctor
    dog domain door dot double down draft dragon dream dress drift drink drive driver drop drum dry duck dust eagle early
    earth east easy echo edge edit egg eight elastic elder electric ember empty end energy engine entry equal error event
    exact extra eye face fact factory fair falcon fall family fan farm fast feather feature feed fence fern ferry field
    figure file filter final find fire first fish flag flame flash flat fleet flint float flood floor flow flower fly
    focus fog fold food foot force forest fork form forum forward fossil found fountain fox frame free fresh friend frog
    front frost fruit fuel full future galaxy game garden gate gather gear gentle ghost giant gift glass globe glove goal
    gold good grain grand grape graph grass gravel gray great green grid ground group grove guard guest guide gulf habit
    hall hammer hand harbor hard harvest hat hawk hay hazel head heart heat heavy hedge height help herb heron high hill
    history hive holder hollow home honey hook hope horizon horn horse host hot hour house human hunter ice idea image
    index indigo ink inner input inside iris iron island item ivory jacket jade jar job join journal journey judge juice
    jump jungle junior just keel keen keep kernel kettle key kind king kitchen kite knee knife knot label labor lace lake
    lamp land lane lantern large last late launch laurel lava law layer lead leaf league leather ledger left lemon lens
    letter level lever light lily lime line link lion list little live load local lock log long look loop lotus loud lower
    lucky lunar machine magnet mail main major maker manager map maple marble march margin marine mark market mask master
    matrix meadow measure medal medium meet melon memory merge metal meter middle mild milk mill mind mineral minor mint
    mirror mist mixer mobile model modern module moment monitor moon moss motion motor mountain mouse mouth movie music
    narrow native nature navy near neat nest net network never new next night nine noble node noon north note novel number
    oak oasis object ocean office offset oil old olive onion open option orange orbit orchard order organ origin other
    otter outer output oval owl oxide pace pack page paint pair palace palm panel paper park parrot part party passage
    patch pattern pearl pebble pencil people pepper phase phone photo piano pilot pine pink pioneer pipe pixel place plain
    plan planet plant plate play plaza plum pocket poem point polar policy pond pool poplar portal post potato powder
    power prairie press prime print prism private process profile project prompt proper proud public pulse pump pure
    purple quarry quartz queen query quest queue quick quiet quill rabbit race radar radio rail rain range rapid raven
    raw reader ready real record red reef region relay remote render report rescue rest result return review ribbon rice
    rich ridge right ring ripple rise river road robin robot rock rocket roll roof room root rope rose rotor rough round
    route row royal ruby rule runner rush saddle safe sage sail salmon salt sample sand satin saturn scale scanner scarf
    scene school science scope score scout screen script sea search season seat second secret seed select senior sensor
    sequence series server service session seven shadow shape share sheep sheet shelf shell shield shift ship shoe shop
    shore short shuttle side signal silent silk silver simple single sister site six skill sky slate sleep slide slim slow
    small smart smoke smooth snow social socket soft soil solar solid song sound soup south space spare spark speed spell
    sphere spice spider spike spiral spirit splash split spoon sport spot spring sprint square stable stack stadium staff
    stage stair stamp standard star start state station steam steel stem step stick still stock stone storage store storm
    story stove straw stream street string strong studio study style sugar summer summit sun super supply surface swan
    sweet swift switch symbol system table tail tale tank task team temple ten tent term test text theme thick thin third
    thorn thread three thunder ticket tide tiger timber time tiny tip title toast token tomato tool top torch total tower
    town toy trace track trade trail train transit travel tray treasure tree trend trial triple truck trust tunnel turbo
    turn turtle twin two type umbrella under union unit upper urban user valley value vapor vault vector velvet vendor
    venture verse vessel view village vine violet vision vital vivid voice volume voyage wagon walk wall walnut warm watch
    water wave way weather web week west wheat wheel whale white wide wild willow win wind window wine wing winter wire
    wise wolf wonder wood wool word work world worker yard year yellow young zebra zero zone
    """.split()  # noqa: SIM905
)

TECH: Final[tuple[str, ...]] = tuple(
    """
    admin api app apps audit auth auto backend backup bench bin binding bindings boot bridge bus cache cell cfg check cli
    client cloud cluster codec com common compat compiler config console contrib core cpp crypto css ctl daemon dash data
    db dbg debug decoder demo dev devel dictionary dist dns doc docs driver editor encoder engine english env exporter ext
    extra extras feed fetch filter font fonts format frame frontend gate generator gtk gui handler hash headers helper hook
    host html http image importer info init input install installer io iter javascript job jobs js json kit lib libs lint
    linux loader local log logger login mail main manager mapper media meta metrics minimal mod model modules monitor mount
    msg multi net notify null ops org parser patch perl pipeline player plugin plugins pool print probe protocol proxy py
    python python3 queue react reader registry remote render router ruby rules runtime rust scanner schema script sdk
    search secure server service services session settings shared shell signal socket source sql ssl stack static std
    storage store stream stub stubs support sync sys system table tag task template term test tests text theme thread time
    tk token tool toolkit tools trace type types ui unix update user util utils validator viewer web widget worker
    wrapper writer xml
    """.split()  # noqa: SIM905
)

ONSETS: Final[tuple[str, ...]] = tuple(
    "b c d f g h j k l m n p q r s t v w x y z br ch cl cr dr fl fr gl gr kr pl pr sc sh sl sn sp st str th tr tw wh".split()
)
NUCLEI: Final[tuple[str, ...]] = tuple("a e i o u a e i o u ai au ea ee ia ie io oa oo ou y".split())
CODAS: Final[tuple[str, ...]] = tuple("b c ck d f g k l ll m n n ng nt p r r rd rk rn s s ss st t t x z nd ft lt mp".split())

FIRST: Final[tuple[str, ...]] = tuple(
    """
    Ada Alan Alex Alice Amir Ana Andrea Anna Anton Armin Ben Bianca Bob Carl Carla Chen Chris Clara Dan Daniel David Dora
    Elena Emil Emma Eric Eva Felix Fiona Frank Gina Grace Hana Hugo Ian Igor Ines Ivan Jan Jane Jens Joe Johan John Jonas
    Jose Julia Kai Karim Karl Kate Kenji Lars Laura Lea Leo Lin Lucas Luis Maria Mark Martin Max Maya Michael Mike Mina
    Nadia Nils Nina Noah Nora Olga Omar Oscar Paul Pedro Peter Petra Piotr Priya Raj Rita Robert Rosa Ryan Sam Sara Simon
    Sofia Stefan Steve Sven Tara Thomas Tim Tina Tom Uma Vera Victor Wei Will Yan Yuki Zoe
    """.split()  # noqa: SIM905
)

LICENSES: Final[tuple[str, ...]] = (
    "MIT", "MIT License", "The MIT License", "BSD", "BSD License", "BSD-2-Clause", "BSD-3-Clause", "BSD 3-Clause License",
    "Apache-2.0", "Apache License 2.0", "Apache Software License", "Apache 2.0", "Apache License, Version 2.0", "GPL-2",
    "GPL-2+", "GPL-3.0-or-later", "GPL-3.0-only", "LGPL-2.1", "LGPL-2.1+", "LGPL-3.0-or-later", "AGPL-3.0-only", "MPL-2.0",
    "MPL 2.0", "ISC", "ISC License", "PSF-2.0", "PSF", "Unlicense", "Zlib", "0BSD", "BSL-1.0", "CC0-1.0", "CC-BY-4.0",
    "EPL-2.0", "Artistic-2.0", "WTFPL", "Public Domain", "Proprietary", "HPND", "NCSA", "OFL-1.1", "Python-2.0",
)  # fmt: skip

SECTIONS: Final[tuple[str, ...]] = tuple(
    """
    admin cli-mono comm database debug devel doc editors education electronics embedded fonts games gnome gnu-r golang
    graphics hamradio haskell httpd interpreters introspection java javascript kde kernel libdevel libs lisp localization
    mail math metapackages misc net news ocaml oldlibs otherosfs perl php python ruby rust science shells sound tasks tex
    text utils vcs video web x11 xfce zope contrib/net non-free/libs universe/web main
    """.split()  # noqa: SIM905
)
STATES: Final[tuple[str, ...]] = tuple(
    "active inactive pending failed running stopped ready degraded unknown ok open closed paused draining healthy blocked "
    "archived deleted queued done waiting online offline stale new retired".split()
)
PLACES: Final[tuple[str, ...]] = tuple("us eu ap sa af me ca cn north south east west central".split())
TOP_LEVEL: Final[tuple[str, ...]] = tuple("com org net io dev info de fr eu uk edu local".split())
ARCHITECTURES: Final[tuple[str, ...]] = tuple(
    "amd64 all any arm64 armhf i386 x86_64 aarch64 riscv64 ppc64el s390x noarch mips64el none".split()
)
PRIORITIES: Final[tuple[str, ...]] = tuple("required important standard optional extra low medium high critical p0 p1 p2".split())
TITLES: Final[tuple[str, ...]] = tuple(
    "Team Developers Maintainers Group Project Contributors Foundation Inc. Ltd. Authors Labs Community Packaging".split()
)
