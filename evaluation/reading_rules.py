r"""The rules by which a person's reading of a multiple-choice answer is imitated, each with an example.

The rules are applied to one clause at a time, in which "@" stands for the letter of an option, or for several
that are joined ("A、B", "A and B", "ABD"). A clause loses what DENIED finds, and then states the letters that
STATED or LIKELY find. Where an ASIDE or a QUESTION is found, the clause falls into the parts that TURN finds,
each of which begins where a match ends, and those with the ASIDE or QUESTION state nothing. STATED outweighs
LIKELY; a word of CONCLUDED in the same clause, or in the one before it, makes either one weigh more; and
RETRACTED withdraws all that was stated before.

The examples are answers to "Which planet is the largest?", whose options are OPTIONS.
"""

from typing import NamedTuple

# The options of all examples.
OPTIONS = ("Mars", "Jupiter", "Venus", "Earth")

DENIED, ASIDE, QUESTION, TURN, STATED, LIKELY, CONCLUDED, RETRACTED = (
    "denied",
    "aside",
    "question",
    "turn",
    "stated",
    "likely",
    "concluded",
    "retracted",
)


class Rule(NamedTuple):
    """What a pattern means where it is found in a clause, and an example with the letters that are read.

    pattern: a regular expression, in any case, with "@" for letters. reads: "" where the example is unread.
    """

    meaning: str
    pattern: str
    example: str
    reads: str


# What may stand between a subject and what is said of it: "应该", "clearly".
SURELY = (
    r"(?:应该|应当|应|就|只能|肯定|一定|显然|当然|自然|无疑|必然|明显|确实|的确|其实|便|"
    r"我认为|我觉得|最终|仍然?|只有)*"
)
ADVERB = (
    r"(?:(?:clearly|definitely|probably|(?:most )?likely|therefore|thus|hence|still|simply|just|obviously|"
    r"indeed|actually|certainly|surely|only|also|both|all|really|undoubtedly|then)\s+)*"
)
IS = (
    r"(?:'s|\s+(?:is|are|was|were|seems|looks|appears|sounds|"
    r"(?:would|should|must|will|could|might|may|can only|has to|would have to|seems to|appears to) be))"
)
OPTION = r"(?:(?:the\s+)?(?:option|choice|letter|answer|number)\s*:?)?"
NOUN = r"(?:说法|表述|描述|内容|解释|选项|答案|选择)"
WRONG = r"(?:wrong|incorrect|false|mistaken|bad|poor|worst)"
ANSWER = r"(?:answer|option|choice|one|letter|pick|guess|selection|response)"

RULES = (
    # Ruled out.
    Rule(
        DENIED,
        r"(?<!得)(?<!能)不(?:能|可以?|应该?|应当|该|会|要|可能|宜|建议|推荐|需要?|认为|觉得)?"
        r"(?:再|去)?(?:是|选择?|为|算|应选|属于)?(?:选项)?@",
        "不应该选A",
        "",
    ),
    Rule(DENIED, r"(?:与其选?|并非|而非|绝非|别选?|勿选|莫选|没有?选|没说是?)@", "并非C正确", ""),
    Rule(DENIED, r"(?:排除|否定|划掉|去掉|剔除|淘汰|放弃|误选|错选)了?(?:选项)?@", "误选A是因为没看清", ""),
    Rule(
        DENIED,
        rf"(?<!除)(?<!除了)@[|(]?(?:的?{NOUN})?(?:都|均|皆|也|则|就|显然|明显|完全|肯定|全|是|说得|说|太|有些?|可以?|应该?|被|同样)*"
        r"(?:不对|不正确|不符|不是|不能|不选|不可|不成立|不准确|不恰当|不合|不妥|不属于|不会|不行|不满足|"
        r"不应|错|有误|排除|无关|[×✗✘❌])",
        "答案A是错的",
        "",
    ),
    Rule(
        DENIED,
        r"(?:错误|不正确|不对|不合适|错|干扰|迷惑)的?(?:答案|选项|选择|一项|回答)"
        rf"{SURELY}(?:是|为|有|包括|:)*{SURELY}(?:选项)?@",
        "错误答案是A，正确答案是B",
        "B",
    ),
    Rule(
        DENIED,
        rf"\b{WRONG}\s+{ANSWER}(?:e?s)?(?:\s+(?:here|to \w+))?(?:{IS}|\s*:)*\s*{ADVERB}{OPTION}@",
        "The wrong answer is B",
        "",
    ),
    Rule(
        DENIED,
        rf"@{IS}\s+{ADVERB}(?:the|an?|another)\s+(?:[\w-]+\s+){{0,2}}?{WRONG}\s+{ANSWER}",
        "B is the wrong answer",
        "",
    ),
    Rule(
        DENIED,
        r"\b(?:(?:wrong|incorrect|mistaken)\s+(?:to|if (?:you|we|I))|"
        rf"wrongly|mistakenly|incorrectly|erroneously)\s+\w+(?:\s+(?:with|for))?\s+{OPTION}@",
        "It is wrong to choose B",
        "",
    ),
    Rule(
        DENIED,
        rf"\b(?:all|anything|everything) but\s+{OPTION}@(?!\s+(?:is|are)\s+(?:wrong|incorrect|false))",
        "All but A are right",
        "",
    ),
    Rule(
        DENIED,
        r"(?:\bnot|n't|\bcannot|\bnever|\bneither|\bnor|\bnone of)\s+"
        r"(?:be\s+|choose\s+|pick\s+|select\s+|go with\s+|it's\s+)?"
        rf"{OPTION}@",
        "I would not choose B",
        "",
    ),
    Rule(
        DENIED,
        r"\b(?:rul(?:e[sd]?|ing) out|eliminat\w+|exclud\w+|reject\w*|discard\w*|rather than|instead of|"
        rf"except|unlike)\s+{OPTION}@",
        "It should be B rather than A",
        "B",
    ),
    Rule(
        DENIED,
        rf"(?<!\ball but)(?<!\ball but )@(?:{IS}|\s+(?:does|do|did|can))*\s*{ADVERB}"
        r"(?:\bnot\b(?! only)|n't\b|\bcannot\b|wrong|incorrect|false|invalid|ruled out|eliminated|excluded|"
        r"impossible|inaccurate|mistaken)",
        "Only A is wrong",
        "",
    ),
    # Said of a letter, and yet no answer.
    Rule(
        ASIDE,
        r"^(?:但是?|不过|而)?(?:如果|若|假如|倘若|假设|要是|即使|即便|就算|虽然?|尽管|固然)",
        "若选A",
        "",
    ),
    Rule(ASIDE, r"的话$", "答案是A的话", ""),
    Rule(
        ASIDE,
        r"^(?:but |and )?(?:if|suppos(?:e|ing)|assuming|although|though|even if|even though|while|unless)\b",
        "If it is A, it must be red",
        "",
    ),
    Rule(ASIDE, r"@也(?:很?有|说得通|行|可以|不错|接近|像|挺|算)", "答案是B，但选A也有道理", "B"),
    Rule(
        ASIDE,
        r"有(?:的|些)?人|(?:很|许)多人|不少人|大家|容易|乍看|看似|诱人|迷惑|干扰|误以为|误认为|错误地|"
        r"一开始|起初|原[来本]|本来|最初",
        "很多人选A",
        "",
    ),
    Rule(
        ASIDE,
        r"\b(?:tempting|distractors?|plausible|at first|first glance|some|many|"
        r"most (?:people|choose|pick|select|say|think)|others|common|"
        r"mistake)\b",
        "Many people choose A",
        "",
    ),
    Rule(
        ASIDE,
        r"\b(?:don't|do not|can't|cannot|not)\s+(?:think|believe|say|see)\b|\bdoubt\b",
        "I don't think it's A",
        "",
    ),
    Rule(ASIDE, r"@\s*比\s*@|@.*\bthan\s.*@", "C比B更正确", ""),
    Rule(ASIDE, r"∅就是|要么|之间|\beither\b|\bbetween\b", "不是A就是B", ""),
    Rule(QUESTION, r"\?$", "选A？", ""),
    Rule(QUESTION, r"(?:吗|么|呢)$|是否|是不是|@.*还是.*@|\bwhether\b", "不知道是否选A", ""),
    # Where something else is said than aside.
    Rule(TURN, r"\s(?=(?:but|yet|however|whereas|while)\b)", "A is tempting but the answer is B", "B"),
    Rule(
        TURN,
        r"\s(?=(?:(?:even )?though|although|even if|because|since)\b|\()",
        "The answer is B though many choose A",
        "B",
    ),
    Rule(
        TURN,
        r"^(?!(?:but |and )?(?:if|suppos|assum|unless)).*\s(?=(?:and|so) (?:the|it|I)\b)",
        "A is a distractor and the answer is B",
        "B",
    ),
    Rule(
        TURN,
        r"(?:@|\b(?:tempting|plausible|distractor|common|mistake))(?:\s+[-–—]+|:|\s+(?:while|though))?\s*"
        r"(?=the (?:(?:correct|right|real|true|best) )?(?:answer|option|choice|one)\b)",
        "Although A is tempting the answer is B",
        "B",
    ),
    Rule(
        TURN,
        r"(?=(?:但是?|可是|可(?=我)|然而|不过|却|其实|实际上|事实上|后来|最后|最终|(?<![从反进因])而(?![且是后])))",
        "很多人选A但正确答案是B",
        "B",
    ),
    Rule(TURN, r"(?=虽然|尽管|即使|因为)", "答案是B尽管很多人选A", "B"),
    Rule(TURN, r"@(?=(?:正确的?)?(?:答案|选项))", "很多人选A正确答案是B", "B"),
    # Stated, in Chinese.
    Rule(STATED, rf"答案{SURELY}(?:是|为|选择?|:|=|填|写|在于)*{SURELY}@", "答案B", "B"),
    Rule(
        STATED,
        rf"(?:选项|选择|一项|结论|结果|答|解){SURELY}(?:是|为|:){SURELY}(?:选择?)?@",
        "结论：B",
        "B",
    ),
    Rule(
        STATED,
        r"(?<![不别可勿莫筛备候])(?:选择?|挑|勾)(?:了|的是|定|中|出)?:?(?:选项|答案)?@"
        r"(?!的(?!原因|理由|依据))",
        "应选B",
        "B",
    ),
    Rule(STATED, r"(?:而|就|才|即|应|应该|应当|只能|该)(?:是|为|填)@|改(?:成|为|选)@", "这一空应填B", "B"),
    Rule(
        STATED,
        r"(?<!不)(?<!不太)(?:正确|对|合适|恰当|准确|合理|符合[^,]{0,6}|最[^,]{1,8}|成立)的"
        rf"[^,]{{0,6}}?{SURELY}(?:是|为|有|:){SURELY}@",
        "最大的是B，A的描述也正确",
        "B",
    ),
    Rule(
        STATED,
        rf"@{SURELY}(?:是|为|才是|就是|即为|即)(?:本题|此题|题目)?(?:唯一|最终|最佳|最好|最优|正确|标准|我)*的?"
        r"(?:答案|选项|选择)|@(?:正确|符合题意)?当选|非@(?:莫属|不可)",
        "B当选",
        "B",
    ),
    Rule(STATED, r"除了?@(?:以|之)?外?[^,]{0,4}(?:都|均|全)[^,]{0,4}(?:不|错)", "除了B以外都不对", "B"),
    # Stated, in English.
    Rule(
        STATED,
        r"\b(?:answers?|ans)\b(?:\s+(?:choice|option|letter|key|here))?(?:\s+(?:to|among|of|for|in)\b[^,]*?)?"
        rf"(?:{IS}|\s*[:=–-])*\s*{ADVERB}{OPTION}@",
        "The correct answer is option B",
        "B",
    ),
    Rule(
        STATED,
        r"\b(?:choose|chose|choosing|pick(?:ed)?|select(?:ed)?|go(?:ing)? (?:with|for)|vote for|opt for|"
        rf"lean(?:ing)? towards?|settle on|bet on|mark)\s+{ADVERB}{OPTION}@",
        "I'll go with B",
        "B",
    ),
    Rule(
        STATED,
        r"\b(?:options?|choice|letter|one|selection|guess|pick|solution|response|it|that|this|\w+est(?:\s+\w+)?)"
        rf"(?:\s+here)?(?:{IS}|\s*:)\s*{ADVERB}{OPTION}@",
        "The best choice is B",
        "B",
    ),
    Rule(
        STATED,
        rf"@{IS}\s+{ADVERB}(?:the|my|our)\s+(?:[\w-]+\s+){{0,3}}?"
        r"(?:answer|choice|option|one|pick|selection|solution)\b",
        "B is my pick",
        "B",
    ),
    Rule(STATED, r"(?:^|∅\s*)(?:but|rather|instead|而是|是)\s*(?:rather\s+)?@", "It is not A but B", "B"),
    Rule(
        STATED,
        rf"\b(?:all|nothing|none|no \w+) but\s+{OPTION}@",
        "All but B are wrong",
        "B",
    ),
    Rule(STATED, r"^(?:(?!@).)*(?:=>|->|→|⇒)@", "Largest planet → B", "B"),
    Rule(STATED, r"^(?:or|或者?)\s*(?:maybe |perhaps |possibly |可能)?是?@", "A, or maybe B", "AB"),
    Rule(STATED, r"^(?:那么?就?|就|嗯|好的?|毫无疑问)?@(?:吧|啊|呀|了|哦)?\s*[(而]?∅?\)?$", "b", "B"),
    # Found right, or said with less weight.
    Rule(
        LIKELY,
        rf"@[|(]?(?:的?{NOUN})?(?:是|才|就|为|都|均|皆|全|也|最|完全|显然|肯定|确实|更|应该|全部|同时|基本)*"
        r"(?:正确|对(?=$|[的了啊吧])|符合|恰当|准确|合适|合理|成立|没错|没有错|没问题|无误|属实|[√✓✔✅])",
        "A项错误，B项正确",
        "B",
    ),
    Rule(LIKELY, r"(?:只有|唯有|仅有?|剩下?(?:的)?(?:就是|是)?)@", "只有B满足条件", "B"),
    Rule(
        LIKELY,
        r"(?:是|认为|觉得|猜|应该|估计|肯定|一定|显然|当然|可能|大概|也许|或许|恐怕|推断|为|即|得|倾向于?选?|所以|因此|故)@"
        r"(?:吧|啊|呀|了|哦|的)?$",
        "我猜B吧",
        "B",
    ),
    Rule(
        LIKELY,
        rf"@{IS}\s+{ADVERB}(?:the\s+)?"
        r"(?:correct|right|true|best|most \w+|accurate|valid|appropriate|\w+est\b)",
        "A is incorrect, B is correct",
        "B",
    ),
    Rule(
        LIKELY,
        r"\b(?:it's|it is|that's|must be|correct|final|selected|conclusion|verdict|choice|result|"
        r"summary|actually|think|believe|guess|say|definitely|probably|surely|certainly|obviously|clearly|likely|"
        r"possibly|perhaps|maybe|so|therefore|thus|hence|then|yes|sure|ok|okay|well|leaving|leaves)"
        rf"\s*:?\s*{OPTION}@(?:\s+(?:then|indeed|for sure|(?:because|since|as|is)\b.*))?$",
        "Definitely B",
        "B",
    ),
    Rule(LIKELY, rf"(?<!not )\bonly {OPTION}@|^@,? it is$", "Only B has rings and is large", "B"),
    # What makes a statement weigh more, or withdraws it.
    Rule(
        CONCLUDED,
        r"故|所以|因此|因而|综上|总之|最后|最终|可见|由此|于是|总的来说|总结",
        "我先选A，最后选B",
        "B",
    ),
    Rule(
        CONCLUDED,
        r"\b(?:therefore|thus|hence|so|finally|final|conclusion|summary|overall|consequently)\b",
        "I choose A for a start. Finally I choose B.",
        "B",
    ),
    Rule(
        RETRACTED,
        r"^(?:不对|不$|错了|我错了|说错了|更正|修正|等等|等一下|抱歉|对不起|不好意思)",
        "选A。不对，选B",
        "B",
    ),
    Rule(
        RETRACTED,
        r"^(?:wait|actually|sorry|correction|scratch that|hmm|no$|no wait|oops|my mistake)\b",
        "The answer is A. Wait, the answer is B.",
        "B",
    ),
)
