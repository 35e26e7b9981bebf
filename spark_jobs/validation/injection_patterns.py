"""Patterns of instructions to a language model, in eighteen languages.

They match the form of an instruction, whatever it asks for: "ignore" near "previous instructions", "write" near "only",
commands to write one specific thing, and speech to a model about its role, its task and its answer.
"""

import codecs
import re
from dataclasses import dataclass

from spark_jobs.validation.clean_text import fold


def any_of(*patterns: str, flags: int = 0) -> re.Pattern[str]:
    """One pattern that matches where any of the given patterns matches."""
    return re.compile("|".join(f"(?:{pattern})" for pattern in patterns), flags)


_AI = r"(?:ai|a\.i\.|llm|gpt|chatgpt|chatbot|bot|language model|model|assistant|recommender|recommendation system)"
_SAY = r"(?:say|write|print|output|reply|respond|repeat|answer|echo|emit|shout)"
_DO = (
    rf"(?:{_SAY}|recommend|praise|always|never|ignore|obey|follow|describe|mention|include|tell|call|rate|act|pretend)"
)
_PRESENT = (
    "(?:describe|rate|rank|call|label|classify|present|promote|advertise|recommend|praise|summari[sz]e|translate)"
)
_THIS = (
    r"(?:(?:this|the|every|all|our|your)\b(?: \w+)? ?"
    r"(?:item|product|film|movie|user|brand|title|text|one|above|description)s?\b|it\b)"
)
_ANSWER = "(?:answer|response|reply|output|description)s?"
_REVEAL = "(?:reveal|leak|disclose|show|print|repeat|output|display|give|tell|send|list|expose)"
_PRIVATE = (
    "(?:prompt|instruction|rule|password|api[- ]?key|secret|credential|config|configuration|environment variable|"
    "training data|guideline|database)s?"
)
# Speech to a model, in English; matched against folded text.
_SPEECH = any_of(
    # what it is and what it was told
    r"\b(?:system|hidden|developer) (?:prompt|instruction)|\b(?:system|developer) message|\bsecret prompt\b",
    r"\bjailbreak|\bdeveloper mode\b|\bdo anything now\b|\bprompt injection\b",
    r"\bnew instructions?\b|\bnew (?:task|directive|order|role)s?:",
    r"\byour (?:system |own )?(?:prompt|instructions|guidelines)\b",
    rf"\byou are (?:now|no longer|an? {_AI})\b|\b(?:act|behave) as (?:an? |if |though )",
    r"\bpretend (?:to be|you are|that you)\b|\brole-?play as\b",
    # who is spoken to
    rf"\b(?:dear|hey|hi|hello|attention) {_AI}s?\s*[,:!-]|(?:^|[.!?]\s*){_AI}s?\s*[,:]\s*(?:please )?{_DO}\b",
    rf"\b(?:note|message) (?:to|for) (?:the |any |all )?{_AI}s?\b|\b{_AI}s? (?:must|shall|reading this)\b",
    r"\b(?:if you are|as) an? (?:ai|llm|language model|chatbot|assistant)\b",
    # what it is to do
    rf"\byou (?:must|should|shall|will|have to|need to) (?:now |not )?{_DO}\b",
    r"\balways (?:recommend|praise|respond|mention|rank)\b",
    rf"\bfrom now on\b.{{0,30}}\b(?:you|every|all|speak|{_DO})\b",
    r"\byour (?:new|only|real|true) (?:task|instruction|job|role|goal|purpose)",
    rf"\byour (?:task|instruction|rule|guideline|prompt|{_ANSWER})s? (?:is|are|must|should)\b",
    rf"\b(?:in|to|of|with) your {_ANSWER}\b",
    r"\b(?:do not|don'?t|never) (?:mention|describe|recommend|reveal|follow|obey|summari[sz]e) "
    r"(?:the|this|any|it|that|these|your|other|anything)\b",
    r"\b(?:execute|run|translate|summari[sz]e) the (?:following|above|command|code|script)\b",
    # how to speak of the item
    rf"\b{_PRESENT} {_THIS}.{{0,40}}\b(?:as|to every|to all|first|above|highest|best|everyone|into|always)\b",
    r"\btell (?:the |every |all |each )?(?:user|customer|reader|viewer|buyer|shopper)s?\b|\bset (?:the )?description\b",
    r"\b(?:the|this|a|correct|item|product) (?:description|summary) (?:is|must|should|to|reads?)\b",
    r"\b(?:in|instead of|skip|as) (?:a|an|the) (?:item )?(?:description|summary|output|response)\b",
    rf"\b(?:begin|start|end|finish) (?:your|every|each|all|the) (?:sentence|{_ANSWER})",
    r"\bwrite (?:me )?an? (?:\w+ )?(?:poem|essay|haiku|limerick|joke|story|script) (?:about|on|instead)\b",
    # what to give away
    rf"\b{_REVEAL}\b(?: \w+){{0,2}}? (?:your|the system|all|every|any|hidden|internal)\b.{{0,25}}\b{_PRIVATE}\b",
)
# A command to write one specific thing: with digits, in quotes, or in capitals after a verb that is not.
_SAY_ABROAD = (
    r"(?:sage?|schreibe?|antworte|[eé]cri[st]|[eé]crivez|r[eé]ponds|r[eé]pondez|diga|escrib[ea]|escrev[ae]|respond[ae]|"
    r"repite|imprim[ea]|scrivi|rispondi|zeg|schrijf|napisz|powiedz)"
)
_WITH = r"(?i: with| back| out| mit| avec| con| com| par| met| le mot| das wort| la palabra| a palavra)*\s*:?\s*"
_COMMAND = any_of(
    rf"\b(?i:{_SAY}|type|return|add|insert|include|append|mention|dis|di|yaz|{_SAY_ABROAD}){_WITH}"
    r"[\"'“”‘’«»„]?\w*[A-Za-z]{3,}[-_]?\d{3,}",
    rf"(?:\b(?:and|then|please|must|to|just|only)|[.,:;!?-])\s+(?i:{_SAY}){_WITH}[\"'“‘«„]\w.*[\"'”’»]",
    rf"\b(?![A-Z]+\b)(?i:{_SAY}|{_SAY_ABROAD}){_WITH}[A-ZÀ-Þ]{{5,}}\b",
)
# The best known instruction without spaces, for text that was split, reversed or rotated.
_COMPACT = re.compile(
    r"(?:ignore|disregard|forget|override|bypass)(?:all|any|the|your|these|of|my)*"
    r"(?:(?:previous|prior|above|earlier|preceding)(?:instruction|prompt|rule|direction|guideline|message|text)"
    r"|instruction|prompt|guideline)"
)


@dataclass(frozen=True)
class InstructionPatterns:
    """One language's patterns for "ignore the previous instructions" and "write only this"."""

    ignore: str
    objects: str
    write: str
    only: str
    either_way: bool = True  # the verb may come last
    near: int = 25  # most characters between `write` and `only`


_LANGUAGES = {
    "English": InstructionPatterns(
        r"\b(?:ignor(?:e|ing)|disregard(?:ing)?|override|bypass|discard|forget|skip|pay no attention to)\b"
        r"|\b(?:do not|don'?t|stop) follow(?:ing)?\b",
        r"\b(?:instruction|prompt|guideline|directive|system message|given fact)s?\b"
        r"|\b(?:previous|prior|earlier|preceding)\b"
        r"|\bthe above\b|\babove (?:text|and)\b|\b(?:all|your|these|those|the|any) (?:rule|fact|polic(?:y|ie))s?\b"
        r"|\beverything (?:above|before|you|i said|so far)",
        rf"\b{_SAY}\b",
        r"\b(?:only|exactly|just|nothing but|verbatim|the following|the (?:\w+ )?(?:word|phrase|string|sentence)s?)\b",
        either_way=False,
    ),
    "German": InstructionPatterns(
        r"ignorier|\bvergiss\b|\bvergesst\b|vergessen sie|missacht|nicht beacht|beachte\w* nicht|\buberspr",
        r"anweisung|instruktion|vorherig|bisherig|\bobig|befehl|\bregeln\b|\bvorgaben|\bprompt|alles (?:und|was|oben)",
        r"\b(?:sag|sage|sagen|schreib|schreibe|schreiben|antworte|antworten|wiederhole|gib|gebe)\b",
        r"\bnur\b|\bgenau\b|ausschlie(?:ss|ß)lich|\bdas wort\b|\bden satz\b",
    ),
    "French": InstructionPatterns(
        r"\bignore[rz]?\b|\boublie[rz]?\b|ne ten\w+ pas compte|n['’]ob\w+ (?:plus|pas)|ne sui\w+ p(?:lu|a)s",
        r"instruction|consigne|precedent|\bregles\b|ci-dessus|directive|tout (?:et|ce)\b",
        r"\b(?:dis|dites|ecri\w+|repond\w*|repete\w*|affich\w+)\b",
        r"\b(?:seulement|uniquement|exactement|simplement|juste|le mot|la phrase)\b",
    ),
    "Spanish": InstructionPatterns(
        r"\bignor(?:a|e|ar|en|ad)\b|\bolvid(?:a|e|ar|en)\b|caso omiso|no sigas|\bdescart(?:a|e)\b",
        r"instruccion|anterior|\breglas\b|indicacion|todo (?:y|lo)\b|\bordenes\b|directriz",
        r"\b(?:diga|decir|escrib\w+|respond\w+|repit\w+|imprim\w+)\b|\bdi (?=sol|unic|exac|la palabra)",
        r"\b(?:solo|solamente|unicamente|exactamente|la palabra|la frase)\b",
    ),
    "Portuguese": InstructionPatterns(
        r"\bignor(?:e|a|ar|em)\b|\besque(?:ca|cer|cam)\b|desconsider",
        r"instruc|anterior|tudo (?:e|o)\b|\bregras\b|\bordens\b|diretriz",
        r"\b(?:diga|dizer|escrev\w+|respond\w+|repit\w+|imprim\w+)\b",
        r"\b(?:apenas|somente|so|exatamente|a palavra|a frase)\b",
    ),
    "Italian": InstructionPatterns(
        r"\bignor(?:a|are|ate|i)\b|dimentica",
        r"istruzion|precedent|tutto (?:e|cio)\b|\bregole\b|direttiv",
        r"\b(?:scriv\w+|rispond\w+|ripet\w+|stampa)\b",
        r"\b(?:solo|soltanto|solamente|esattamente|la parola)\b",
    ),
    "Dutch": InstructionPatterns(
        r"negeer|\bvergeet\b",
        r"instructie|vorige|voorgaande|\bregels\b",
        r"\b(?:zeg|schrijf|antwoord)\b",
        r"\b(?:alleen|enkel|het woord)\b",
    ),
    "Polish": InstructionPatterns(
        r"ignoruj|zapomnij|nie przestrzegaj|\bpomin\b",
        r"instrukcj|poprzedni|polece|\bzasad",
        r"\b(?:napisz|powiedz|odpowiedz|wypisz)\b",
        r"\b(?:tylko|wylacznie|słowo|slowo)\b",
    ),
    "Turkish": InstructionPatterns(
        r"yok say|gormezden gel|\bunut|dikkate alma|goz ardi",
        r"talimat|onceki|\bkural|yonerge|komut",
        r"\b(?:yaz|yazin|soyle\w*|cevap ver\w*|tekrarla\w*)\b",
        r"\b(?:sadece|yalnizca|kelimesi\w*)\b",
    ),
    "Indonesian": InstructionPatterns(
        r"\b(?:abaikan|lupakan)\b",
        r"instruksi|perintah|sebelumnya|aturan",
        r"\b(?:katakan|tulis\w*|jawab)\b",
        r"\b(?:hanya|saja|kata)\b",
    ),
    "Vietnamese": InstructionPatterns(
        r"bo qua|phot lo|quen di",
        r"huong dan|chi dan|lenh|truoc do",
        r"\b(?:noi|viet|tra loi)\b",
        r"\bchi (?=noi|viet|tra)",
    ),
    "Russian": InstructionPatterns(
        r"игнорир|забуд|не обращай|не следуй|не выполняй|пренебрег",
        r"инструкци|предыдущ|правил|указани|команд|выше|вс[её],? (?:что|и) ",
        r"скажи|напиш|ответь|повтори|выведи",
        r"только|слово|ровно|лишь|фразу",
    ),
    "Ukrainian": InstructionPatterns(
        r"ігнору|забуд", r"інструкці|попередн|правил|вказівк", r"скажи|напиши|відпові", r"тільки|лише|слово"
    ),
    "Chinese": InstructionPatterns(
        r"忽略|无视|無視|忘记|忘記|不要理会|不理会|跳过|忽視|忽视",
        r"指令|指示|以上|上面|之前|先前|规则|規則|提示|说明|說明|命令",
        r"输出|回复|回答|说|写|輸出|回覆|說|寫|打印",
        r"只|仅|僅|必须|单词|單詞",
        near=4,
    ),
    "Japanese": InstructionPatterns(
        r"無視|忘れ|従わな",
        r"指示|命令|これまで|以前|上記|ルール|プロンプト|前の",
        r"出力し|言って|言え|答え|返答|返信|書いて|書け|返して",
        r"だけ|のみ|」と",
        near=8,
    ),
    "Korean": InstructionPatterns(
        r"무시|잊어|잊으",
        r"지시|명령|이전|규칙|프롬프트|위의",
        r"출력|말해|말하|대답|답하|써라|쓰세요",
        r"만 |라고|오직",
        near=8,
    ),
    "Arabic": InstructionPatterns(
        r"تجاهل|انس |انسى|تجاوز|اهمل|احذف",
        r"تعليمات|السابق|ما سبق|القواعد|الاوامر|اوامر",
        r"قل |اكتب|اجب|كرر|اطبع",
        r"فقط|كلمة|الكلمة|عبارة|العبارة",
    ),
    "Hindi": InstructionPatterns(
        r"अनदेखा|नजरअंदाज|नज़रअंदाज़|भूल|उपेक्षा|ध्यान न दे|मत मान|न मान",
        r"निर्देश|पिछल|नियम|ऊपर|आदेश|पहले के",
        r"लिख|कहो|कहें|बोलो|बोलें|उत्तर|जवाब",
        r"केवल|सिर्फ|सिर्फ़|शब्द",
    ),
}
_FAR = 60  # most characters between `ignore` and `objects`


def _near(first: str, second: str, distance: int, either_way: bool) -> re.Pattern[str]:
    first, second = fold(first), fold(second)
    forwards = rf"(?:{first}).{{0,{distance}}}?(?:{second})"
    return re.compile(rf"{forwards}|(?:{second}).{{0,{distance}}}?(?:{first})" if either_way else forwards)


_INSTRUCTIONS = tuple(
    pattern
    for each in _LANGUAGES.values()
    for pattern in (
        _near(each.ignore, each.objects, _FAR, each.either_way),
        _near(each.write, each.only, each.near, each.either_way),
    )
)


def reads_as_instruction(text: str) -> bool:
    """Whether a text, without any decoding, reads as an instruction to a language model."""
    folded = fold(text)
    return bool(
        _COMMAND.search(text) or _SPEECH.search(folded) or any(pattern.search(folded) for pattern in _INSTRUCTIONS)
    )


def hides_instruction(letters: str) -> bool:
    """Whether letters without spaces contain the best known instruction: forwards, backwards or in ROT13."""
    return any(_COMPACT.search(each) for each in (letters, letters[::-1], codecs.decode(letters, "rot13")))
